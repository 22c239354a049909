"""A training step on packed documents against the same step in which every row is one document.

Work: forward and backward of a ternary SmolLM2-135M body, bfloat16 autocast, 2 threads, documents of about 300 tokens in 4 rows of
512 and in 2 rows of 2,048; 5 of the 30 decoder layers, which are all alike. The other side is plain causal attention over the row,
torch's fused kernel through transformers (`sdpa`). Peers, against that side too: the same kernel with a dense block-diagonal mask,
and called for each document.

Expected: attention within documents needs 0.51 of the row's products at 512 and 0.15 at 2,048, so a step that keeps documents
apart should be the cheaper one; what is lost is what it takes to find documents and to handle them one by one.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from benchmarks import bodies
from benchmarks.harness import interleave, medians, report
from wfray.quant import hold_codes, release_codes
from wfray.student import run_body
from wfray.student.attention import NAME, attend_fused
from wfray.student.segments import Segments

GOAL = 1.0
DOCUMENTS = {512: [[300, 212]] * 4, 2048: [[280, 310, 295, 305, 290, 300, 268]] * 2}
"""Lengths of the documents of each row, by length of row."""
EACH = "fused_for_each_document"


def each_document(module: nn.Module, *states: Tensor | None, segments: Segments, scaling: float, **unused: object) -> tuple[Tensor, None]:
    """transformers' attention interface around torch's kernel, one call a document; `states`: Q, K, V and no mask."""
    query, key, value = (state for state in states if state is not None)
    return attend_fused(query, key, value, segments, scaling), None


AttentionInterface.register(EACH, each_document)


def packed_rows(length: int) -> dict[str, Tensor]:
    """A packed batch of `DOCUMENTS[length]`."""
    rows = DOCUMENTS[length]
    return {
        "input_ids": bodies.batch(len(rows), length)["input_ids"],
        "position_ids": torch.stack([torch.cat([torch.arange(size) for size in sizes]) for sizes in rows]),
        "segment_ids": torch.stack([torch.arange(1, len(sizes) + 1).repeat_interleave(torch.tensor(sizes)) for sizes in rows]),
    }


def block_mask(segment_ids_BT: Tensor) -> Tensor:
    """[B, 1, T, T]: True where a position sees another."""
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same_BTT.tril()[:, None]


def step(model: PreTrainedModel, attention: str, forward: Callable[[], Tensor], grad: Tensor) -> Callable[[], None]:
    """Forward and backward of the body with one of the kinds of attention."""

    def run() -> None:
        model.set_attn_implementation(attention)
        hold_codes(model)
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTC = forward()
        hidden_BTC.backward(grad.to(hidden_BTC.dtype))
        release_codes(model)
        model.zero_grad(set_to_none=True)

    return run


def steps(model: PreTrainedModel, length: int) -> dict[str, Callable[[], None]]:
    """All sides at one length of row."""
    packed = packed_rows(length)
    ids_BT, positions_BT = packed["input_ids"], packed["position_ids"]
    whole_BT, mask = torch.arange(length).expand_as(ids_BT), block_mask(packed["segment_ids"])
    body, grad = model.base_model, torch.randn(*ids_BT.shape, model.config.hidden_size)

    def dense(positions: Tensor, mask: Tensor | None) -> Tensor:
        return body(input_ids=ids_BT, position_ids=positions, attention_mask=mask, use_cache=False).last_hidden_state

    return {
        "documents": step(model, NAME, lambda: run_body(model, packed).hidden_BTC, grad),
        "row": step(model, "sdpa", lambda: dense(whole_BT, None), grad),
        "block mask": step(model, "sdpa", lambda: dense(positions_BT, mask), grad),
        "kernel for each document": step(model, EACH, lambda: run_body(model, packed).hidden_BTC, grad),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=5, help="decoder layers; the whole body has 30")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(bodies.THREADS)
    model = bodies.student(num_layers=args.layers)
    ratios: dict[int, dict[str, float]] = {}
    for length in DOCUMENTS:
        seconds = medians(interleave(steps(model, length), rounds=args.rounds))
        ratios[length] = {name: round(value / seconds["row"], 4) for name, value in seconds.items() if name != "row"}
    report(
        "segment_attention",
        max(sides["documents"] for sides in ratios.values()),
        "x of the step in which every row is one document",
        goal=GOAL,
        peers={
            f"{name}, rows of {length}": ratio for length, sides in ratios.items() for name, ratio in sides.items() if name != "documents"
        },
        detail={"layers": args.layers, "documents": {length: sides["documents"] for length, sides in ratios.items()}},
    )


if __name__ == "__main__":
    main()
