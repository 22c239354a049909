"""Learned mixing on real text: with a probe of one domain its weight rises, and its held-out loss is lower than with equal weights.

A small random student (49,152 tokens of SmolLM2's vocabulary, 2 layers of width 128) is trained from scratch on the quickstart's four
kinds of text, once with equal weights and once with weights that follow the influence on a probe of code. Both see the same
number of tokens; the loss is measured on held-out rows of code that are not in the probe. Headline: the worst seed's ratio of the
two losses. The cost of the default interval is one measurement over a thousand steps.

    make bench NAME=influence             three seeds
    python -m benchmarks.influence 1      one
"""

import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from actors.student_worker import run_worker
from benchmarks.harness import report
from benchmarks.inputs import ROOT, make_student, quickstart_corpus
from wfray.config.data import PackConfig
from wfray.config.mixing import InfluenceMixing
from wfray.config.model import Architecture, RandomModel
from wfray.config.train import TrainConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import heldout
from wfray.evals.perplexity import score_batch
from wfray.runs import read_metrics
from wfray.student import load_student
from wfray.train.feed import as_tensors

DOMAIN = "code"
SOURCES = ["encyclopedia", "speeches", "documentation", "code"]
PROBE_ROWS, HELDOUT_ROWS = 8, 8
BATCH_TOKENS, NUM_STEPS, EVERY_STEPS = 4096, 48, 4
MIXING = {"kind": "influence", "probe": [DOMAIN], "probe_rows": PROBE_ROWS, "rows": 4, "every_steps": EVERY_STEPS}


def student_of(seed: int) -> Path:
    """A random student of its own for every seed."""
    tokenizer = PackConfig.load(ROOT / "configs" / "pack" / "quickstart.yaml").tokenizer
    architecture = Architecture(
        family="llama", num_layers=2, hidden_size=128, intermediate_size=384, num_heads=4, num_kv_heads=2, head_dim=32,
        vocab_size=49152, tied_head=True,
    )  # fmt: skip
    return make_student(RandomModel(kind="random", tokenizer=tokenizer, architecture=architecture, seed=seed))


def train(corpus: Path, seed: int, mixing: dict[str, Any] | None) -> tuple[float, list[dict]]:
    """Train one student; the held-out loss of the domain, and the metrics."""
    tree = {
        "run": "benchmark",
        "stage": "pretrain",
        "student": "convert",
        "weights": dict.fromkeys(SOURCES, 1.0),
        "mixing": mixing,
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": NUM_STEPS * BATCH_TOKENS,
            "batch_tokens": BATCH_TOKENS,
            "micro_rows": 4,
            "seed": seed,
            "checkpoint_every_tokens": NUM_STEPS * BATCH_TOKENS,
            "optimizer": {"learning_rate": 2e-3},
            "schedule": {"shape": "wsd", "warmup_fraction": 0.1},
        },
    }
    with TemporaryDirectory() as directory:
        run_worker(TrainConfig.parse(tree, "benchmark"), Path(directory), student_of(seed), corpus)
        student = load_student(Path(directory) / "student")
        rows = heldout(PackedCorpus(corpus), DOMAIN, HELDOUT_ROWS, start=PROBE_ROWS)
        score = score_batch(student, as_tensors(rows, slice(None)), torch.bfloat16)
        return score.loss, read_metrics(Path(directory) / "metrics.jsonl")


def compare(corpus: Path, seed: int) -> dict[str, Any]:
    """Both arms of one seed."""
    (equal, plain), (learned, rows) = train(corpus, seed, None), train(corpus, seed, MIXING)
    measured = [row for row in rows if row["mixing_fraction"] > 0]
    seconds = [row["mixing_fraction"] * BATCH_TOKENS / row["tokens_per_second"] for row in measured]
    step = statistics.median(BATCH_TOKENS / row["tokens_per_second"] for row in plain)
    return {
        "seed": seed,
        "heldout_loss_equal": round(equal, 4),
        "heldout_loss_influence": round(learned, 4),
        "ratio": learned / equal,
        "weights_at_the_end": {name: rows[-1][f"weight_{name}"] for name in SOURCES},
        "mean_weight_of_the_probe": round(statistics.mean(row[f"weight_{DOMAIN}"] for row in rows), 4),
        "measurement_over_step": round(statistics.median(seconds) / step, 3),
        "cost_at_default_interval": round(statistics.median(seconds) / step / InfluenceMixing.model_fields["every_steps"].default, 5),
    }


def main(num_seeds: int) -> None:
    corpus = quickstart_corpus()
    results = [compare(corpus, seed) for seed in range(num_seeds)]
    costs = [result["cost_at_default_interval"] for result in results]
    detail = {
        "seeds": results,
        "probe": DOMAIN,
        "weight_rises_in_every_seed": all(result["weights_at_the_end"][DOMAIN] > 1 / len(SOURCES) for result in results),
        "worst_cost_at_default_interval": max(costs),
        "cost_is_within_3_percent": max(costs) <= 0.03,
        "tokens": NUM_STEPS * BATCH_TOKENS,
        "every_steps": EVERY_STEPS,
    }
    value = max(result["ratio"] for result in results)
    report("influence", value, "x of the held-out loss with equal weights, worst seed", goal=0.999, detail=detail)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
