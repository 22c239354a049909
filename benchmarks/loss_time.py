"""How long cross-entropy plus full-vocabulary KL takes against the plain implementation, forward and backward, on two threads.

`make bench NAME=loss_time`. SmolLM2-135M's head (vocabulary 49,152, width 576) at 512, 2,048 and 8,192 tokens; the value is the
worst ratio of medians, ours over plain. Sides are defined in `loss_sides`.

Prediction, before the first run: the four products are the same on both sides and are about a third of the plain time, whose
pointwise passes over [tokens, vocabulary] in float32 wait for memory; in tiles that stay in cache they should cost a third of
the products. So about 0.5, hardly depending on the number of tokens, where a chunked loss that recomputes or that chunks in
autograd loses at few tokens (Liger's fused KL is slower than plain torch below about 1,024).

Outcome, in processor time of one thread on a busy machine: 0.42 at 512 and 0.41 at 2,048 tokens, the products alone 0.33;
chunked autograd 1.05 and 1.02. On two threads that must share their cores with other processes the waiting at the end of every
pass dominates both sides, so that the figure says something on a quiet machine only.
"""

import torch

from benchmarks.harness import interleave, medians, report
from benchmarks.loss_sides import Inputs, chunked, ours, plain

VOCABULARY, WIDTH, THREADS = 49152, 576, 2
TOKENS = (512, 2048, 8192)
MOST_CHUNKED = 2048
"""The chunked peer is left out above: the run would take too long."""


def measure(num_tokens: int) -> dict[str, float]:
    """Median seconds of each side."""
    inputs = Inputs.random(num_tokens, VOCABULARY, WIDTH)
    sides = {"ours": lambda: ours(inputs), "plain": lambda: plain(inputs)}
    if num_tokens <= MOST_CHUNKED:
        sides["chunked_autograd"] = lambda: chunked(inputs)
    return medians(interleave(sides, rounds=5, warm_ups=1))


def main() -> None:
    """Measure every size and report."""
    torch.set_num_threads(THREADS)
    seconds = {num_tokens: measure(num_tokens) for num_tokens in TOKENS}
    ratios = {num_tokens: round(found["ours"] / found["plain"], 3) for num_tokens, found in seconds.items()}
    chunks = {size: round(found["chunked_autograd"] / found["plain"], 3) for size, found in seconds.items() if "chunked_autograd" in found}
    report(
        "loss_time",
        max(ratios.values()),
        "x of the plain implementation's time, worst size",
        goal=1.0,
        peers={"chunked_autograd": chunks},
        detail={"ratios": ratios, "seconds": seconds, "vocabulary": VOCABULARY, "width": WIDTH, "threads": THREADS},
    )


if __name__ == "__main__":
    main()
