"""A second epoch from the cache: forward passes of the teacher, the student's step, and bytes on disk.

Work: as in `teacher_overlap`, with a cache that every row is in, so that the live side reads instead of computing. The headline is the
step's time over that with signals in memory, and infinite where the teacher computed anything. Bytes a token are those of the files,
with the wire's own bytes beside them. DistillKit keeps the 50 most likely ids in about 114 bytes a token, its probabilities through
a fitted polynomial; what is kept here comes back to the bit.
"""

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import report
from benchmarks.teachers import LENGTH, Step, Turns, client, deployed, part, passes, pin_all_but_this_thread, rows
from wfray.config.objectives import CrossEntropy, LogitsKL
from wfray.config.teacher import Wire
from wfray.data.batch import PackedBatch
from wfray.runs.files import size_of
from wfray.teacher import SignalRequest

GOAL = 1.03
SKIPPED, COUNTED = 3, 4
NUM_IDS, LAYER = 50, 22
DISTILLKIT_BYTES = 114
WIRES: tuple[Wire, ...] = ("topk", "sampled", "qkv", "layers", "hidden")


def fill(batch: PackedBatch, num_rows: int, cache: Path) -> dict[str, dict[str, float]]:
    """A first epoch with each wire; bytes a token on disk and on the wire."""
    found = {}
    for wire in WIRES:
        before = size_of(cache)
        asking = client(SignalRequest(wires=[wire], num_ids=NUM_IDS, qkv_layer=LAYER))
        on_wire = 0
        for first in range(0, len(batch["input_ids"]), num_rows):
            arrays = asking.request(part(batch, first, num_rows)).call.wait()["arrays"]
            asking.num_unread -= 1
            on_wire += sum(array.nbytes for array in arrays.values())
        tokens = batch["input_ids"].size
        found[wire] = {"disk": round((size_of(cache) - before) / tokens, 1), "wire": round(on_wire / tokens, 1)}
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2, help=f"of {LENGTH} tokens, a step")
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    batch = rows(arguments.rows * (SKIPPED + COUNTED))
    cache_of = "wires=[hidden,layers,qkv,topk,sampled]"
    with TemporaryDirectory() as cache, deployed("threads=1", f"cache={{path: {cache}, max_gb: 10}}", cache_of):
        sizes = fill(batch, arguments.rows, Path(cache))
        asking = client(SignalRequest(wires=["hidden"]))
        step = Step([CrossEntropy(kind="cross_entropy"), LogitsKL(kind="logits_kl")], asking.head(), arguments.rows)
        pin_all_but_this_thread(core=1)
        before = passes()
        seconds, waiting = Turns(step, asking, batch, SKIPPED, COUNTED).run(arguments.turns)
        computed = passes() - before
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    report(
        "teacher_cache",
        medians["live"] / medians["memory"] if computed == 0 else float("inf"),
        "x of the step with signals in memory, no forward pass of the teacher",
        goal=GOAL,
        peers={"distillkit_top50_bytes_a_token": DISTILLKIT_BYTES},
        detail={
            "passes_in_the_second_epoch": computed,
            "bytes_a_token": sizes,
            "waiting_fraction": round(waiting, 5),
            "step_seconds": {side: round(value, 3) for side, value in medians.items()},
            "steps": len(seconds["live"]),
        },
    )


if __name__ == "__main__":
    main()
