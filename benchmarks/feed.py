"""The share of a real training step that a student waits for data, and how fast the feed is without a student.

The share is measured in the training loop itself: SmolLM2-135M as a ternary student, all layers, on the quickstart's corpus. The
headline is the worst step, the first included, in which shards are opened and their hashes compared. The speed is that of
a consumer that does nothing, beside the same rows as an Arrow table of `datasets`, read in the same order with the same arrays derived.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import Dataset

from actors.student_worker import run_worker
from benchmarks.harness import interleave, medians, report
from benchmarks.inputs import ROOT, make_student, quickstart_corpus
from wfray.config.data import PackConfig
from wfray.config.train import TrainConfig
from wfray.data.batch import make_batch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.runs import read_metrics
from wfray.train import Feed, StepPlan

BATCH_TOKENS = 2048
NUM_STEPS = 6
ROWS, MICRO_ROWS, FEED_STEPS = 32, 8, 40
"""Of the consumer that does nothing."""


def training_rows(corpus: Path, student: Path) -> list[dict]:
    """The metrics of some real training steps."""
    tree = {
        "run": "benchmark",
        "stage": "pretrain",
        "student": "convert",
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": NUM_STEPS * BATCH_TOKENS,
            "batch_tokens": BATCH_TOKENS,
            "micro_rows": 2,
            "checkpoint_every_tokens": NUM_STEPS * BATCH_TOKENS,
            "optimizer": {"learning_rate": 1e-4},
        },
    }
    with TemporaryDirectory() as directory:
        run_worker(TrainConfig.parse(tree, "benchmark"), Path(directory), student, corpus)
        return read_metrics(Path(directory) / "metrics.jsonl")


def consume(corpus: PackedCorpus) -> None:
    """Our feed."""
    for _ in Feed(MixedStream(corpus, seed=0), StepPlan(ROWS, MICRO_ROWS, FEED_STEPS, 0, 2), None, 0, 1):
        pass


def as_dataset(corpus: PackedCorpus, directory: Path) -> tuple[Dataset, dict[str, int]]:
    """All training rows as a memory-mapped Arrow table, and where each source begins in it."""
    starts: dict[str, int] = {}
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "segment_ids": []}
    for name in corpus.source_names:
        starts[name] = sum(map(len, columns["input_ids"]))
        rows = corpus.read_rows(name, "train", range(corpus.split(name, "train").num_rows))
        columns["input_ids"].append(rows.input_ids)
        columns["segment_ids"].append(rows.segment_ids)
    Dataset.from_dict({name: np.concatenate(parts) for name, parts in columns.items()}).save_to_disk(directory)
    return Dataset.load_from_disk(str(directory)).with_format("numpy"), starts


def consume_dataset(corpus: PackedCorpus, dataset: Dataset, starts: dict[str, int]) -> None:
    """The same batches through `datasets`."""
    stream = MixedStream(corpus, seed=0)
    for _ in range(FEED_STEPS):
        chosen = stream.advance(ROWS)
        rows = dataset[[starts[name] + row for name, row in chosen]]
        make_batch(rows["input_ids"], rows["segment_ids"], np.zeros(ROWS, np.int16), np.arange(ROWS))


def main() -> None:
    directory = quickstart_corpus()
    student = make_student(PackConfig.load(ROOT / "configs" / "pack" / "quickstart.yaml").tokenizer)
    rows = training_rows(directory, student)
    waits = [row["data_wait_fraction"] for row in rows]
    corpus = PackedCorpus(directory)
    with TemporaryDirectory() as table:
        dataset, starts = as_dataset(corpus, Path(table))
        sides = {"feed": lambda: consume(corpus), "datasets": lambda: consume_dataset(corpus, dataset, starts)}
        seconds = medians(interleave(sides))
    speeds = {name: round(ROWS * FEED_STEPS / value) for name, value in seconds.items()}
    length = corpus.index.sequence_length
    detail = {
        "rows_per_second": speeds["feed"],
        "tokens_per_second": speeds["feed"] * length,
        "sequence_length": length,
        "training_tokens_per_second": statistics.median(row["tokens_per_second"] for row in rows),
        "wait_share_by_step": waits,
        "student": "SmolLM2-135M, 30 layers, bfloat16",
    }
    report(
        "feed",
        max(waits),
        "share of a training step spent waiting for data",
        goal=0.005,
        peers={"datasets_rows_per_second": speeds["datasets"]},
        detail=detail,
    )


if __name__ == "__main__":
    main()
