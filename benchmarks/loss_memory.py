"""How much memory cross-entropy plus full-vocabulary KL takes beside its inputs and results, against the plain implementation.

`make bench NAME=loss_memory`. 8,192 tokens at two vocabularies: SmolLM2-135M's (49,152, width 576) and Qwen3-0.6B's (151,936, width
1,024). Each measurement is a process of its own: it makes the inputs, lets the kernels load on a few tokens, resets
the kernel's high-water mark of its resident memory, runs forward and backward once and reads the mark.
Counted is the mark less what was resident before and less the two gradients (head in float32, hidden states), which both sides
must hand back; the bfloat16 copy of the head, buffers and temporaries count. The value is the worse of the two ratios.

The plain implementation would need over 35 GB at the larger vocabulary. There it is measured at two smaller numbers of tokens, and
the line through both is read at 8,192; so is ours at 8,192 in full.

Prediction, before the first run: plain holds about six float32 and two bfloat16 tensors [tokens, vocabulary] at its peak, 28 bytes a
logit: 11 GB and 35 GB. Ours holds two bfloat16 chunks of 1,024 tokens, the head and one product of its gradient in bfloat16: 0.32
GB and 1.2 GB. Ratio 0.03 at both.

Outcome: 32 bytes a logit on the plain side, 12.8 GB and 39 GB on the line through smaller sizes; ours 0.34 GB at the smaller
vocabulary, as predicted once the term of another dtype was added to the head's gradient by tiles: torch casts the whole of it first, which
took a third more.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.harness import report
from benchmarks.loss_sides import Inputs, ours, plain

SIDES = {"ours": ours, "plain": plain}
TOKENS = 8192
SHAPES = {"smollm2": (49152, 576), "qwen3": (151936, 1024)}
SMALLER = {"smollm2": (), "qwen3": (512, 1536)}
"""Numbers of tokens at which plain is measured instead, where it does not fit."""
WARM_UP_TOKENS = 16
THREADS = 2


def main() -> None:
    """Measure every shape, or one side of one shape as a child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "SHAPE", "TOKENS"))
    child = parser.parse_args().child
    if child:
        print(json.dumps(peak_bytes(child[0], *SHAPES[child[1]], int(child[2]))))
        return
    found = {shape: compare(shape) for shape in SHAPES}
    ratios = {shape: round(sides["ours"] / sides["plain"], 4) for shape, sides in found.items()}
    counted = "peak resident bytes beyond inputs, weights and the gradients handed back"
    detail = {"ratios": ratios, "gigabytes": found, "tokens": TOKENS, "shapes": SHAPES, "counted": counted}
    detail["extrapolated"] = {f"plain, {shape}": f"linearly from {sizes} tokens" for shape, sizes in SMALLER.items() if sizes}
    report("loss_memory", max(ratios.values()), "x of the plain implementation's extra memory, worse vocabulary", goal=0.1, detail=detail)


def compare(shape: str) -> dict[str, float]:
    """Gigabytes of both sides at the full number of tokens."""
    return {"ours": in_child("ours", shape, TOKENS) / 1e9, "plain": plain_bytes(shape) / 1e9}


def plain_bytes(shape: str) -> float:
    """Of the plain side, on the line through the smaller sizes where it does not fit."""
    if not SMALLER[shape]:
        return in_child("plain", shape, TOKENS)
    low, high = SMALLER[shape]
    first, second = (in_child("plain", shape, size) for size in (low, high))
    return second + (second - first) / (high - low) * (TOKENS - high)


def in_child(side: str, shape: str, num_tokens: int) -> float:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loss_memory", "--child", side, shape, str(num_tokens)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def peak_bytes(side: str, vocabulary: int, width: int, num_tokens: int) -> int:
    """What this process takes at most while one side runs once, less what was there and what is handed back."""
    torch.set_num_threads(THREADS)
    inputs = Inputs.random(num_tokens, vocabulary, width)
    SIDES[side](Inputs.random(WARM_UP_TOKENS, vocabulary, width))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_bytes("VmRSS")
    SIDES[side](inputs)
    handed_back = inputs.head_VC.grad.nbytes + inputs.hidden_TC.grad.nbytes  # type: ignore[union-attr]
    return status_bytes("VmHWM") - before - handed_back


def status_bytes(field: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
