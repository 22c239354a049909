"""A worker killed with -9 in mid-run: what is lost, and how soon training goes on.

Work: a two-layer student on two gloo workers of a Ray cluster started here, 60 steps, a checkpoint every 10 steps; once undisturbed,
then with a worker killed a few steps after the second checkpoint. The headline counts what must not happen: steps whose loss differs
in any bit from the undisturbed run, and steps redone beyond one interval. Seconds are those from the kill to the first step of the
new group, and to the first step that had not been done before; they are those of starting Python processes that import torch, since
Ray starts the whole group again.
"""

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.harness import report
from wfray.config.convert import Subln
from wfray.config.data import PackConfig
from wfray.config.train import TrainConfig
from wfray.data.packing import pack
from wfray.data.shards import CorpusIndex, SourceIndex, SplitIndex, write_index, write_shard
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import read_metrics
from wfray.student import convert, save_student

GOAL = 0
NUM_STEPS, INTERVAL, ROWS, LENGTH, VOCABULARY = 60, 10, 8, 64, 256
SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and report."""
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "OMP_NUM_THREADS": "1"}
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        student, corpus = make_inputs(Path(folder))
        whole = run(Path(folder) / "whole", student, corpus)
        killing = Killing(Path(folder) / "killed")
        killing.start()
        resumed = run(killing.directory, student, corpus)
        killing.join()
    ray.shutdown()
    again = [row for row in resumed if row["time"] > killing.moment]
    redone = killing.step - (again[0]["step"] - 1)
    differing = sum(a["loss"] != b["loss"] for a, b in zip(whole, resumed, strict=True))
    new = next(row for row in again if row["step"] > killing.step)
    report(
        "resume",
        differing + max(0, redone - INTERVAL),
        "differing losses + steps redone beyond one interval",
        goal=GOAL,
        detail={
            "steps": NUM_STEPS,
            "interval": INTERVAL,
            "killed_after_step": killing.step,
            "differing_losses": differing,
            "steps_redone": redone,
            "seconds_to_first_step": round(again[0]["time"] - killing.moment, 2),
            "seconds_to_first_new_step": round(new["time"] - killing.moment, 2),
        },
    )


class Killing(threading.Thread):
    """Kills a training worker of this machine's cluster a few steps after the second checkpoint."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory, self.moment, self.step = directory, 0.0, 0

    def run(self) -> None:
        while self.step < 2 * INTERVAL + 3:
            time.sleep(0.01)
            self.step = max((row["step"] for row in read_metrics(self.directory / "metrics.jsonl")), default=0)
        workers = [process for process in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(process.cmdline())]
        self.moment = time.time()
        os.kill(workers[-1].pid, signal.SIGKILL)


def run(directory: Path, student: Path, corpus: Path) -> list[dict[str, Any]]:
    """Train; the row of every step."""
    # Ray Train reads its settings from the environment when it is imported.
    from actors.student import train_student

    step = ROWS * LENGTH
    tree = {
        "run": "unused",
        "stage": "pretrain",
        "student": "unused",
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": NUM_STEPS * step,
            "batch_tokens": step,
            "micro_rows": ROWS // 2,
            "checkpoint_every_tokens": INTERVAL * step,
            "optimizer": {"learning_rate": 1e-3},
            "threads": 1,
            "num_workers": 2,
        },
    }
    train_student(TrainConfig.parse(tree, "benchmark"), directory, student, corpus)
    return read_metrics(directory / "metrics.jsonl")


def make_inputs(directory: Path) -> tuple[Path, Path]:
    """A student with random weights and a packed corpus of random tokens."""
    facts = save_tokenizer(PackConfig.load(ROOT / "configs" / "pack" / "tiny.yaml").tokenizer, directory / "tokenizer")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SHAPE, vocab_size=VOCABULARY, tie_word_embeddings=True)
    model = convert(AutoModelForCausalLM.from_config(config), Subln(init="ones"))
    save_student(model, directory / "student", tokenizer_from=directory / "tokenizer")
    generator = np.random.default_rng(0)
    documents = [np.append(generator.integers(1, VOCABULARY, size=40), 0).astype(np.int32) for _ in range(400)]
    corpus = directory / "corpus"
    shards = [write_shard(corpus, f"random-{part}", pack(documents[part::2], LENGTH, 0)) for part in range(2)]
    splits = {"train": SplitIndex(shards=shards[:1]), "heldout": SplitIndex(shards=shards[1:])}
    source = SourceIndex(name="random", kind="text_files", licence="CC0-1.0", weight=1.0, splits=splits)
    figures = {**facts.model_dump(), "vocab_size": VOCABULARY, "document_end_id": 0}
    write_index(corpus, CorpusIndex(**figures, sequence_length=LENGTH, sources=[source]))
    return directory / "student", corpus


if __name__ == "__main__":
    main()
