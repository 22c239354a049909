"""What checkpoints cost: the share of the training time that is lost to them at the interval of the presets.

Work: SmolLM2-135M shapes with random weights, AdamW, cross-entropy on one row of 128 tokens a step, two threads, checkpoints of
1.6 GB to the disk of the working directory. In turns: steps alone, then a checkpoint and steps until it is committed. Lost are the
seconds for which `save` stands still, and those by which the steps beside the writing thread are slower than the median step alone.

A preset's time between two checkpoints is estimated from the same steps: tokens x (forward and backward) + steps x (optimizer). The
headline is the worst SmolLM2-135M preset. The peer writes with `dcp.save` while training waits.

Expected: the copy moves 3.2 GB through memory and takes about a second on two cores; the writer needs about two seconds of one core,
which training loses where no core is free. At three million tokens between checkpoints both vanish beside hours of training.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from benchmarks import bodies
from benchmarks.harness import report
from wfray.config.objectives import CrossEntropy
from wfray.config.train import TrainConfig
from wfray.data.stream import Cursor
from wfray.objectives import StageLoss
from wfray.student import lm_head_weight, run_body
from wfray.train import CheckpointStore, Collective, Replica
from wfray.train.checkpoints import Progress, training_tensors
from wfray.train.optimizer import make_optimizer

GOAL = 0.02
PRESETS = Path(__file__).parents[1] / "configs"
TOKENS = 128


class Training:
    """A student in training, a step at a time."""

    def __init__(self, num_layers: int) -> None:
        preset = TrainConfig.load(PRESETS / "pretrain" / "smollm2_135m.yaml")
        model = bodies.student(num_layers=num_layers)
        self.replica = Replica(model, torch.bfloat16, Collective())
        self.optimizer = make_optimizer(model, preset.train)
        self.loss = StageLoss([CrossEntropy(kind="cross_entropy")], None, torch.bfloat16)
        self.batch = bodies.batch(1, TOKENS)
        self.batch["targets"] = self.batch["input_ids"].roll(-1, dims=1)

    def compute(self) -> torch.Tensor:
        """The loss of the batch."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = run_body(self.replica.model, self.batch)
            return self.loss(output, lm_head_weight(self.replica.model), self.batch, {}, TOKENS, 0.0)[0]

    def step(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the rest."""
        started = time.perf_counter()
        self.replica.hold_codes()
        self.replica.forward(self.compute).backward()
        computed = time.perf_counter()
        self.replica.release_codes()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return computed - started, time.perf_counter() - computed


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="decoder layers; the whole body has 30")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(bodies.THREADS)
    training = Training(args.layers)
    alone: list[tuple[float, float]] = []
    copies, slower, waits = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder, CheckpointStore(Path(folder) / "ours", Collective()) as store:
        checkpoint(store, training, 0)
        store.finish()
        for number in range(1, args.rounds + 1):
            steps = [training.step() for _ in range(3)]
            alone += steps
            copies.append(timed(lambda number=number: checkpoint(store, training, number)))
            beside = []
            while not (store.directory / f"step-{number:08d}").exists():
                beside.append(sum(training.step()))
            slower.append(sum(beside) - len(beside) * statistics.median(map(sum, steps)))
            waits.append(timed(lambda: dcp.save(tensors_of(training), checkpoint_id=Path(folder) / "peer", no_dist=True)))
    compute, rest = (statistics.median(part) for part in zip(*alone, strict=True))
    lost = statistics.median(copies) + max(0.0, statistics.median(slower))
    between = {name: tokens * compute / TOKENS + steps * rest for name, (tokens, steps) in intervals().items()}
    fractions = {name: lost / seconds for name, seconds in between.items()}
    presets = {name: fraction for name, fraction in fractions.items() if "smollm2" in name}
    worst = max(presets, key=lambda name: presets[name])
    report(
        "ckpt_stall",
        fractions[worst],
        "of the training time",
        goal=GOAL,
        peers={"dcp.save": round(statistics.median(waits) / between[worst], 5)},
        detail={
            "worst_preset": worst,
            "fractions": {name: round(fraction, 6) for name, fraction in fractions.items()},
            "copy_seconds": [round(value, 3) for value in copies],
            "seconds_by_which_steps_beside_the_writer_are_slower": [round(value, 3) for value in slower],
            "waiting_save_seconds": [round(value, 3) for value in waits],
            "step_seconds": {"forward_and_backward": round(compute, 3), "rest": round(rest, 3), "tokens": TOKENS},
            "bytes": sum(tensor.nbytes for tensor in tensors_of(training).values()),
        },
    )


def intervals() -> dict[str, tuple[int, int]]:
    """Tokens and steps between two checkpoints of the presets of SmolLM2-135M; the quickstart is one, on a laptop's scale."""
    found = {}
    for path in sorted(PRESETS.glob("*/smollm2_135m.yaml")) + sorted(PRESETS.glob("*/quickstart.yaml")):
        if path.parent.name in ("align", "pretrain", "distill"):
            train = TrainConfig.load(path).train
            steps = train.checkpoint_every_tokens // train.batch_tokens
            found[f"{path.parent.name}/{path.stem}"] = (steps * train.batch_tokens, steps)
    return found


def tensors_of(training: Training) -> dict[str, torch.Tensor]:
    return training_tensors(training.replica.model, training.optimizer)


def checkpoint(store: CheckpointStore, training: Training, number: int) -> None:
    """What the training loop does at an interval."""
    progress = Progress(step=number, tokens=number, cursor=Cursor(corpus="none", split="train", seed=0, sources={}, history=[]))
    store.save(training.replica.model, training.optimizer, progress)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
