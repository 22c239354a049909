"""A training step of the ternary student against the same step of the unconverted model.

Work: forward and backward of the SmolLM2-135M body, 4 rows of 512 tokens, 2 threads, bfloat16 autocast, lambda = 1, weights
quantized within the step. The headline compares like with like: both compiled (`train.compile`). The same pair in eager mode and
the usual implementations, which have no SubLN, are peers, each against the eager unconverted model.

Expected: products are half of the compiled step and forward ones a third of those; in int8 they take half the time, which saves
8%. Codes and scales cost some of it back: SubLN, the activations' maxima, and an int32 product that is read once more.
Outcome (6 layers): they cost all of it back, 1.00; against the eager unconverted model 0.95.
"""

import argparse

import torch

from benchmarks import bodies
from benchmarks.harness import interleave, medians, report
from wfray.student.compiled import compile_layers

GOAL = 0.97


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="decoder layers; the whole body has 30")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(bodies.THREADS)
    models = {
        "bf16": bodies.original(num_layers=args.layers),
        "bf16 compiled": bodies.original(num_layers=args.layers),
        "ternary": bodies.student(num_layers=args.layers),
        "ternary compiled": bodies.student(num_layers=args.layers),
        "fake-quant": bodies.replaced(bodies.fake_quant, args.layers),
        "AutoBitLinear": bodies.replaced(bodies.auto_bit_linear, args.layers),
    }
    for name, model in models.items():
        if name.endswith("compiled"):
            compile_layers(model)
    packed = bodies.batch()
    seconds = medians(interleave({name: bodies.training_step(model, packed) for name, model in models.items()}, rounds=args.rounds))
    against_eager = {name: round(value / seconds["bf16"], 4) for name, value in seconds.items() if name != "bf16"}
    report(
        "qat_step",
        seconds["ternary compiled"] / seconds["bf16 compiled"],
        "x of the unconverted model's step, both compiled",
        goal=GOAL,
        peers={f"{name} / bf16": value for name, value in against_eager.items()},
        detail={"layers": args.layers, "tokens": bodies.ROWS * bodies.LENGTH, "seconds": {k: round(v, 4) for k, v in seconds.items()}},
    )


if __name__ == "__main__":
    main()
