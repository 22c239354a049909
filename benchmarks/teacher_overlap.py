"""A student's step with a live teacher on the next core, against the same step with its signals in memory already.

Work: a ternary SmolLM2-135M on core 0, forward, backward and update on rows of 512 tokens, cross-entropy and KL from `hidden`; its teacher,
SmolLM2-135M, and all of Ray on core 1. The student asks two micro-batches ahead, as its feed does. Turns of both
sides alternate; a turn's first steps, in which the teacher still works for the other turn, are not counted. The rest of the cost is what
two cores share: memory and the last-level cache.
"""

import argparse
import statistics

from benchmarks.harness import report
from benchmarks.teachers import LENGTH, Step, Turns, client, deployed, pin_all_but_this_thread, rows
from wfray.config.objectives import CrossEntropy, LogitsKL
from wfray.teacher import SignalRequest

GOAL, GOAL_WAITING = 1.03, 0.01
SKIPPED, COUNTED = 3, 4


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2, help=f"of {LENGTH} tokens, a step")
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    batch = rows(arguments.rows * (SKIPPED + COUNTED))
    with deployed("threads=1"):
        asking = client(SignalRequest(wires=["hidden"]))
        step = Step([CrossEntropy(kind="cross_entropy"), LogitsKL(kind="logits_kl")], asking.head(), arguments.rows)
        pin_all_but_this_thread(core=1)
        seconds, waiting = Turns(step, asking, batch, SKIPPED, COUNTED).run(arguments.turns)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    report(
        "teacher_overlap",
        medians["live"] / medians["memory"],
        "x of the step with signals in memory",
        goal=GOAL,
        detail={
            "waiting_fraction": round(waiting, 5),
            "waiting_goal": f"<= {GOAL_WAITING}",
            "step_seconds": {side: round(value, 3) for side, value in medians.items()},
            "steps": len(seconds["live"]),
            "tokens_a_step": arguments.rows * LENGTH,
        },
    )


if __name__ == "__main__":
    main()
