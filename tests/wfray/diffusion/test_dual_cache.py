"""The dual cache against a decoder that keeps the keys and values of every position by itself, as they were when it was last run."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model
from tests.wfray.diffusion.test_decode import PROMPTS, decoder

MAX_TOKENS = 21


@dataclass
class ByPosition:
    """Keys and values by layer and position; runs positions that see those of their own block and the ones before it."""

    model: PreTrainedModel
    states: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float) -> Tensor:
        """One position at a time."""
        for index, position in enumerate(self.positions):
            self.states[layer, position] = (key_BKTD[0, :, index], value_BKTD[0, :, index])
        group = query_BHTD.shape[1] // key_BKTD.shape[1]
        mixed = []
        for index, position in enumerate(self.positions):
            seen = [self.states[key] for key in sorted(self.states) if key[0] == layer and key[1] // BLOCK <= position // BLOCK]
            keys_HLD, values_HLD = (torch.stack(each, dim=1).repeat_interleave(group, dim=0) for each in zip(*seen, strict=True))
            weights_HL = (torch.einsum("hd,hld->hl", query_BHTD[0, :, index], keys_HLD) * scaling).softmax(dim=-1)
            mixed.append(torch.einsum("hl,hld->hd", weights_HL, values_HLD))
        return torch.stack(mixed, dim=1)[None]

    def best(self, tokens: list[int], positions: list[int]) -> dict[int, tuple[float, int]]:
        """Run positions; by the position that each predicts, the likeliest token and its probability."""
        self.positions = positions
        hidden_TC = self.model.base_model(
            input_ids=torch.tensor([[tokens[position] for position in positions]]),
            position_ids=torch.tensor([positions]),
            attending=self,
            use_cache=False,
        ).last_hidden_state[0]
        logits_TV = hidden_TC @ self.model.get_output_embeddings().weight.T
        logits_TV[:, MASK_ID] = -torch.inf
        confidence_T, token_T = logits_TV.float().softmax(dim=-1).max(dim=-1)
        return {position + 1: (float(confidence_T[index]), int(token_T[index])) for index, position in enumerate(positions)}


@torch.inference_mode()
def slow_answer(model: PreTrainedModel, prompt: list[int], threshold: float, sub_block_size: int) -> list[int]:
    """Block by block: a whole run at the beginning of each sub-block, then runs of the sub-block and the position before it."""
    runs, limit = ByPosition(model), len(prompt) + MAX_TOKENS
    start = len(prompt) // BLOCK * BLOCK
    tokens = prompt + [MASK_ID] * (start + BLOCK - len(prompt))
    if start:
        found = runs.best(tokens, list(range(start)))
        tokens[start] = found[start][1] if start == len(prompt) else tokens[start]
    while True:
        for first in range(start, start + BLOCK, sub_block_size):
            positions = list(range(start, start + BLOCK))
            while masked := [place for place in range(first, min(first + sub_block_size, limit)) if tokens[place] == MASK_ID]:
                found = runs.best(tokens, positions)
                surest = max(masked, key=lambda place: found[place][0])
                for place in masked:
                    if place == surest or found[place][0] > threshold:
                        tokens[place] = found[place][1]
                positions = list(range(max(first - 1, start), first + sub_block_size))
        if start + BLOCK >= limit:
            return tokens[len(prompt) : limit]
        found = runs.best(tokens, list(range(start, start + BLOCK)))
        start += BLOCK
        tokens += [found[start][1], *[MASK_ID] * (BLOCK - 1)]


@pytest.mark.parametrize("threshold", [0.03, 0.1, 1.0])
def test_answers_are_those_of_a_cache_kept_by_position(threshold: float) -> None:
    model = diffusion_model(ternary=False).double()
    ours = decoder(model, threshold=threshold, sub_block_size=2, dual_cache=True)
    assert ours.generate(PROMPTS) == [slow_answer(model, prompt, threshold, 2) for prompt in PROMPTS]
    # The first run of a sub-block gives all that is sure enough at the lowest threshold.
    assert (ours.counts.windows > 0) == (threshold > 0.03)


def test_it_is_an_approximation_that_differs_from_exact_decoding() -> None:
    model = diffusion_model(ternary=False).double()
    exact, dual = (decoder(model, threshold=1.0, sub_block_size=2, dual_cache=dual_cache).generate(PROMPTS) for dual_cache in (False, True))
    assert exact != dual
