"""A training step of block diffusion against an autoregressive step on the same packed rows of real instructions.

Work: forward and backward with cross-entropy of a ternary model of SmolLM2-135M's shape, whole (with fewer layers the LM head,
which costs both sides the same, flatters the ratio), 2 rows of 512, blocks of 32, bfloat16, 2 threads. Peer: the paper's own layout,
`[x_t ; x_0]` of every document with a dense mask, once a copy.

The floor: two noisy copies and the clean text are 3 times the tokens, 4 in the paper's layout, through the layers; the LM head's part
stays the same, as every response token is predicted once. Of these 3, prompts need no noisy copies and last blocks no clean one, while
filling up to whole blocks adds some. `detail` says how many tokens the layers see in each, counted, and the ratio that these make
of the autoregressive step if nothing but products took time.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import bodies
from benchmarks.harness import interleave, medians, report
from benchmarks.inputs import packed_corpus
from wfray.config.convert import Subln
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.diffusion.attention import Attending, grouped_attention, use_block_attention
from wfray.diffusion.batch import block_row
from wfray.diffusion.forward import DiffusionForward
from wfray.objectives.linear_losses import linear_losses
from wfray.quant import hold_codes, release_codes, set_lambda
from wfray.student import convert, lm_head_weight, run_body
from wfray.student.forward import Forward
from wfray.train.feed import as_tensors

GOAL = 2.2
BLOCK, MASK_ID, SEED = 32, 49_151, 0


def step(model: PreTrainedModel, forward: Forward, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward, loss and backward."""
    targets_T = batch["targets"].flatten()
    num_targets = int((targets_T != -100).sum())

    def run() -> None:
        hold_codes(model)
        with torch.autocast("cpu", torch.bfloat16):
            hidden_TC = forward(model, batch).hidden_BTC.flatten(0, 1)
            losses = linear_losses(hidden_TC, lm_head_weight(model), targets_T, num_targets, ce_weight=1.0, dtype=torch.bfloat16)
        losses.total.backward()
        release_codes(model)
        model.zero_grad(set_to_none=True)

    return run


class DenseHalves(Attending):
    """`[x_t ; x_0]` of a row of documents under the paper's mask, as one dense tensor; each half is filled up to whole blocks."""

    def __init__(self, documents: list[int]) -> None:
        """`documents`: the length of each in whole blocks, one after the other."""
        length, numbers = torch.tensor(documents), torch.arange(sum(documents))
        document = torch.arange(len(documents)).repeat_interleave(length).repeat(2)
        number, is_noisy = numbers.repeat(2), torch.arange(2 * len(numbers)) < len(numbers)
        earlier, same = number[None] < number[:, None], number[None] == number[:, None]
        seen = (~is_noisy[None] & earlier) | (same & (is_noisy[None] == is_noisy[:, None]))
        mask = seen & (document[None] == document[:, None])
        self.mask = mask.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float) -> Tensor:
        """See `Attending`."""
        return grouped_attention(query_BHTD, key_BKTD, value_BKTD, self.mask, scaling)


def papers_step(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Callable[[], None], int]:
    """The step in the paper's layout, of random tokens in documents of the batch's lengths, and the tokens that it runs."""
    rows = []
    for segments in batch["segment_ids"]:
        lengths = torch.bincount(segments.long())[1:]
        rows.append([-(-int(length) // BLOCK) for length in lengths])
    num_targets = int((batch["targets"] != -100).sum())
    share = num_targets / (2 * BLOCK * sum(map(sum, rows)))

    def run() -> None:
        hold_codes(model)
        for documents in rows:
            attending, length = DenseHalves(documents), 2 * BLOCK * sum(documents)
            ids_1T, positions_1T = torch.randint(0, MASK_ID, (2, length)), torch.arange(length).expand(2, length)
            with torch.autocast("cpu", torch.bfloat16):
                body = model.base_model(input_ids=ids_1T, position_ids=positions_1T, attending=attending, use_cache=False)
                targets_T = torch.where(torch.rand(2 * length) < share, 1, -100)
                hidden_TC = body.last_hidden_state.flatten(0, 1)
                losses = linear_losses(hidden_TC, lm_head_weight(model), targets_T, num_targets, ce_weight=1.0, dtype=torch.bfloat16)
            losses.total.backward()
        release_codes(model)
        model.zero_grad(set_to_none=True)

    return run, 4 * BLOCK * sum(map(sum, rows))


def floor(model: PreTrainedModel, batch: dict[str, Tensor], tokens: int) -> float:
    """The ratio of products of a step that runs `tokens` through the layers to those of the autoregressive step."""
    layers = sum(parameter.numel() for parameter in model.base_model.layers.parameters())
    head = lm_head_weight(model).numel() * int((batch["targets"] != -100).sum())
    return (tokens * layers + head) / (batch["input_ids"].numel() * layers + head)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="decoder layers; the whole body has 30")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--full-precision", action="store_true", help="lambda 0 instead of a ternary model")
    args = parser.parse_args()
    torch.set_num_threads(bodies.THREADS)
    corpus = PackedCorpus(packed_corpus("diffusion", "fetch=true"))
    batch = as_tensors(MixedStream(corpus, seed=SEED).take(args.rows), slice(None))
    causal, diffusing = (convert(bodies.original(num_layers=args.layers), Subln(init="ones")) for _ in range(2))
    for model in (causal, diffusing):
        set_lambda(model, 0.0 if args.full_precision else 1.0)
    use_block_attention(diffusing)
    papers, papers_tokens = papers_step(diffusing, batch)
    forward = DiffusionForward(SEED, BLOCK, MASK_ID)
    sides = {"autoregressive": step(causal, run_body, batch), "diffusion": step(diffusing, forward, batch), "paper's layout": papers}
    seconds = medians(interleave(sides, rounds=args.rounds, warm_ups=1))
    tokens = {"autoregressive": batch["input_ids"].numel(), "paper's layout": papers_tokens}
    tokens["diffusion"] = len(block_row(batch, SEED, BLOCK, MASK_ID).input_ids)
    detail: dict[str, Any] = {
        "layers": args.layers,
        "targets": int((batch["targets"] != -100).sum()),
        "tokens through the layers": tokens,
        "floor": {name: round(floor(diffusing, batch, number), 3) for name, number in tokens.items()},
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    against = partial(round, ndigits=3)
    report(
        "diffusion_step",
        seconds["diffusion"] / seconds["autoregressive"],
        "x of the autoregressive step",
        goal=GOAL,
        peers={"paper's layout": against(seconds["paper's layout"] / seconds["autoregressive"])},
        detail=detail,
    )


if __name__ == "__main__":
    main()
