"""Masks, labels and losses of block-diffusion training against loops over the paper's words."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model, packed_batch
from tests.wfray.diffusion.reference import document_loss, documents_of, may_attend
from wfray.diffusion.attention import TILE, RowOfBlocks, fill_up, flex_block_mask
from wfray.diffusion.batch import block_row
from wfray.diffusion.blocks import Blocks, token_mask
from wfray.diffusion.forward import DiffusionForward
from wfray.diffusion.noise import row_noise
from wfray.quant import set_lambda
from wfray.student.forward import lm_head_weight

SEED = 3


def reference_loss(batch: dict[str, Tensor], family: str, ternary: bool, strength: float, block_size: int) -> tuple[Tensor, list[Tensor]]:
    """The paper's loss summed over both copies, and the gradients of all weights."""
    model = diffusion_model(family, ternary, attention="sdpa")
    if ternary:
        set_lambda(model, strength)
    total = torch.zeros(())
    for row, positions in documents_of(batch):
        tokens = [int(batch["input_ids"][row, p]) for p in positions]
        is_response = [False, *(int(batch["targets"][row, p]) != -100 for p in positions[:-1])]
        noise = row_noise(SEED, int(batch["sample_index"][row]), batch["position_ids"][row].numpy(), block_size)
        total = total + document_loss(model, tokens, is_response, [bool(noise[p]) for p in positions], block_size, MASK_ID)
    total.backward()
    return total.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def our_loss(batch: dict[str, Tensor], family: str, ternary: bool, strength: float, block_size: int) -> tuple[Tensor, list[Tensor]]:
    model = diffusion_model(family, ternary)
    if ternary:
        set_lambda(model, strength)
    output = DiffusionForward(SEED, block_size, MASK_ID)(model, batch)
    logits = output.hidden_BTC @ lm_head_weight(model).T
    total = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten().long(), ignore_index=-100, reduction="sum")
    total.backward()
    return total.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("block_size", [4, 8, 32])
@pytest.mark.parametrize(("family", "ternary", "strength"), [("llama", False, 0.0), ("qwen3", True, 1.0), ("llama", True, 0.5)])
def test_loss_and_gradients_are_those_of_the_papers_whole_sequence_twice(
    batch: dict[str, Tensor], family: str, ternary: bool, strength: float, block_size: int
) -> None:
    (wanted, wanted_gradients), (found, gradients) = (
        measure(batch, family, ternary, strength, block_size) for measure in (reference_loss, our_loss)
    )
    # Where a sum differs in its last bit, an activation's int8 code may be the next one.
    tolerance = 1e-5 if not ternary else 2e-3
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance)
    assert len(gradients) == len(wanted_gradients)
    for gradient, other in zip(gradients, wanted_gradients, strict=True):
        assert (gradient - other).norm() <= (1e-4 if not ternary else 0.05) * other.norm() + 1e-6


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_the_rule_is_the_papers_mask(num_blocks: int) -> None:
    length = num_blocks * BLOCK
    blocks = Blocks(
        torch.zeros(2 * num_blocks, dtype=torch.int64),
        torch.arange(num_blocks).repeat(2),
        torch.tensor([1] * num_blocks + [0] * num_blocks),
        BLOCK,
    )
    mask = token_mask(blocks, blocks)
    for query in range(2 * length):
        for key in range(2 * length):
            assert bool(mask[query, key]) == may_attend(query, key, length, BLOCK)


def test_documents_never_see_each_other(batch: dict[str, Tensor]) -> None:
    blocks = block_row(batch, SEED, BLOCK, MASK_ID).blocks
    mask = token_mask(blocks, blocks)
    of_token = blocks.document.repeat_interleave(BLOCK)
    assert not mask[of_token[:, None] != of_token[None]].any()


def test_every_response_token_is_masked_in_exactly_one_copy_and_a_prompt_in_none(batch: dict[str, Tensor]) -> None:
    row = block_row(batch, SEED, BLOCK, MASK_ID)
    seen: dict[tuple[int, int], list[int]] = {}
    for index, (document, number, copy) in enumerate(zip(row.blocks.document, row.blocks.number, row.blocks.copy, strict=True)):
        for offset in range(BLOCK):
            if row.input_ids[index * BLOCK + offset] == MASK_ID:
                seen.setdefault((int(document), int(number) * BLOCK + offset), []).append(int(copy))
    for document, (packed_row, positions) in enumerate(documents_of(batch)):
        for place, position in enumerate(positions[1:], start=1):
            copies = seen.get((document, place), [])
            is_response = bool(batch["targets"][packed_row, position - 1] != -100)
            # A copy may be left out of the row where nothing in the block is predicted from it.
            assert len(copies) <= 1 if is_response else not copies
        assert (document, 0) not in seen


def test_the_state_before_a_token_predicts_it_from_the_copy_that_masks_it(batch: dict[str, Tensor]) -> None:
    row = block_row(batch, SEED, BLOCK, MASK_ID)
    tokens = row.input_ids.view(-1, BLOCK)
    for document, (packed_row, positions) in enumerate(documents_of(batch)):
        noise = row_noise(SEED, int(batch["sample_index"][packed_row]), batch["position_ids"][packed_row].numpy(), BLOCK)
        for place, position in enumerate(positions[:-1]):
            if batch["targets"][packed_row, position] == -100:
                continue
            block, offset = divmod(int(row.predictor_BS[packed_row, position]), BLOCK)
            copy = 1 if noise[position + 1] else 2
            described = (row.blocks.document[block], row.blocks.number[block], row.blocks.copy[block])
            assert tuple(map(int, described)) == (document, place // BLOCK, copy)
            assert offset == place % BLOCK and row.position_ids[block * BLOCK + offset] == place
            is_masked = bool(noise[position]) == (copy == 1) and place and batch["targets"][packed_row, position - 1] != -100
            assert tokens[block, offset] == (MASK_ID if is_masked else batch["input_ids"][packed_row, position])


def test_samples_are_filled_up_to_whole_blocks_without_loss(batch: dict[str, Tensor]) -> None:
    row = block_row(batch, SEED, BLOCK, MASK_ID)
    assert len(row.input_ids) % BLOCK == 0
    places = row.predictor_BS[batch["targets"] != -100]
    assert len(places.unique()) == len(places), "every target has a state of its own"
    lengths = [len(positions) for _, positions in documents_of(batch)]
    documents = row.blocks.document.repeat_interleave(BLOCK)[places]
    assert all(int(row.position_ids[place]) < lengths[int(document)] - 1 for place, document in zip(places, documents, strict=True))


def test_noise_is_drawn_per_block_uniformly_and_from_the_rows_number_alone() -> None:
    positions = np.arange(32 * 4000) % (32 * 50)
    masked = row_noise(0, 7, positions, 32)
    assert masked.mean() == pytest.approx(0.5, abs=0.02)
    shares = masked.reshape(-1, 32).mean(axis=1)
    # The share of a block is uniform but for the drawing of 32 tokens: variance 1/12 + E[t (1 - t)] / 32.
    assert shares.var() == pytest.approx(1 / 12 + 1 / 6 / 32, rel=0.05)
    assert (row_noise(0, 7, positions, 32) == masked).all()
    assert (row_noise(0, 8, positions, 32) != masked).mean() > 0.3 and (row_noise(1, 7, positions, 32) != masked).mean() > 0.3


def test_a_row_has_the_same_noise_however_the_batch_is_cut(batch: dict[str, Tensor]) -> None:
    whole = block_row(batch, SEED, BLOCK, MASK_ID).input_ids
    parts = [block_row({name: t[r : r + 1] for name, t in batch.items()}, SEED, BLOCK, MASK_ID).input_ids for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_flex_attention_computes_the_same_from_its_block_mask() -> None:
    batch = packed_batch([[(40, 150), (20, 60)], [(100, 150)]], length=280)
    blocks = fill_up(block_row(batch, SEED, 32, MASK_ID).blocks)
    length = len(blocks) * 32
    assert length % TILE == 0
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 16, generator=generator) for heads in (4, 2, 2))
    mask = flex_block_mask(blocks)
    found = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=True)
    wanted = RowOfBlocks(blocks).attend(0, query, key, value, 0.3)
    assert torch.allclose(found, wanted, atol=1e-5)  # type: ignore[arg-type]
    reference = create_block_mask(mask.mask_mod, 1, 1, length, length, device="cpu", BLOCK_SIZE=TILE)
    assert torch.equal(mask.to_dense(), reference.to_dense())
    assert mask.sparsity() == reference.sparsity()


def test_a_block_that_tiles_cannot_hold_is_refused_on_a_gpu() -> None:
    blocks = Blocks(torch.zeros(4, dtype=torch.int64), torch.arange(4), torch.zeros(4, dtype=torch.int64), 96)
    with pytest.raises(ValueError, match="a block must divide 128 tokens: block_size 96 does not"):
        flex_block_mask(blocks)


@pytest.mark.parametrize("documents", [[[(5, 0)]], [[(1, 0), (3, 1)]], [[(2, 1)]], [[(0, 1)]]], ids=str)
def test_empty_and_short_responses(documents: list[list[tuple[int, int]]]) -> None:
    batch = packed_batch(documents, length=8)
    model = diffusion_model()
    hidden = DiffusionForward(SEED, BLOCK, MASK_ID)(model, batch).hidden_BTC
    assert hidden.shape == (1, 8, 32) and torch.isfinite(hidden).all()
    hidden.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None
