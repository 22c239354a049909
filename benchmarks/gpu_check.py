"""The training benchmarks on one CUDA GPU, with random weights at the shapes of SmolLM2-135M and Qwen3-0.6B.

`make bench NAME=gpu_check`. Imports `wfray` only, no Ray. For each shape: a compiled ternary step against the compiled unconverted
model's (goal <= 1.05), also with the usual implementation in eager mode beside it, and the peak extra memory and the time of
cross-entropy plus full-vocabulary KL from hidden states at 8,192 tokens against the plain implementation (goals <= 0.10 and <= 1.00).
The headline is the worse ratio of steps.

Figures so far: none, it has not been run on a GPU yet.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import bodies
from benchmarks.harness import interleave, medians, report
from benchmarks.loss_sides import Inputs, ours, plain
from wfray.student.compiled import compile_layers

GOAL = 1.05
ROWS, LENGTH, LOSS_TOKENS = 16, 1024, 8192


def main() -> None:
    """Measure every shape and report.

    Raises:
        ValueError: there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("gpu_check needs a CUDA GPU and a torch that was built for it; on CPUs use qat_step, loss_memory and loss_time")
    found = {shape: {"step": step_ratios(shape), "loss": loss_ratios(shape)} for shape in bodies.SHAPES}
    steps = {shape: figures["step"]["ternary compiled / bf16 compiled"] for shape, figures in found.items()}
    detail = {**found, "device": torch.cuda.get_device_name(), "tokens": ROWS * LENGTH, "loss tokens": LOSS_TOKENS}
    report("gpu_check", max(steps.values()), "x of the unconverted model's step, both compiled, worse shape", goal=GOAL, detail=detail)


def step_ratios(shape: str) -> dict[str, float]:
    """Median times of a training step, each against its peer."""
    models = {"bf16": bodies.original(shape), "bf16 compiled": bodies.original(shape)}
    models |= {"ternary": bodies.student(shape), "ternary compiled": bodies.student(shape)}
    for name, model in models.items():
        model.cuda()
        if name.endswith("compiled"):
            compile_layers(model)
    packed = bodies.batch(ROWS, LENGTH, "cuda")
    sides = {name: finished(bodies.training_step(model, packed)) for name, model in models.items()}
    seconds = medians(interleave(sides, rounds=9, warm_ups=3))
    del models, sides
    gc.collect()
    torch.cuda.empty_cache()
    pairs = [("ternary compiled", "bf16 compiled"), ("ternary", "bf16"), ("ternary compiled", "bf16")]
    return {f"{a} / {b}": round(seconds[a] / seconds[b], 4) for a, b in pairs} | {"seconds": round(seconds["ternary compiled"], 5)}


def loss_ratios(shape: str) -> dict[str, Any]:
    """Time and peak extra memory of the losses, ours over plain."""
    figures = bodies.SHAPES[shape][1]
    inputs = Inputs.random(LOSS_TOKENS, figures["vocab_size"], figures["hidden_size"], "cuda")
    seconds = medians(interleave({"ours": finished(lambda: ours(inputs)), "plain": finished(lambda: plain(inputs))}, rounds=7))
    extra = {"ours": extra_bytes(ours, inputs), "plain": extra_bytes(plain, inputs)}
    return {
        "time": round(seconds["ours"] / seconds["plain"], 4),
        "memory": round(extra["ours"] / extra["plain"], 4),
        "gigabytes": {name: round(size / 1e9, 3) for name, size in extra.items()},
    }


def finished(side: Callable[[], object]) -> Callable[[], None]:
    """`side`, waiting for the GPU."""

    def run() -> None:
        side()
        torch.cuda.synchronize()

    return run


def extra_bytes(side: Callable[[Inputs], float], inputs: Inputs) -> int:
    """Peak allocation beyond inputs and the gradients that are handed back."""
    inputs.forget()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side(inputs)
    return torch.cuda.max_memory_allocated() - before - inputs.hidden_TC.nbytes - inputs.head_VC.nbytes


if __name__ == "__main__":
    main()
