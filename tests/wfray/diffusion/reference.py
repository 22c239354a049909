"""Block-diffusion training as the paper tells it (arXiv 2509.26328, section 3), slowly: documents one by one, loops over tokens.

Shares nothing with `wfray.diffusion`. The sequence is `[x_t ; x_0]`, both halves at the same positions, the mask is dense, and the
complementary mask is a second sequence.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel


def documents_of(batch: dict[str, Tensor]) -> list[tuple[int, list[int]]]:
    """(row, packed positions) of each document."""
    found = []
    for row, segments in enumerate(batch["segment_ids"].tolist()):
        for segment in sorted(set(segments) - {0}):
            found.append((row, [position for position, other in enumerate(segments) if other == segment]))
    return found


def padded(tokens: list[int], block_size: int, mask_id: int) -> list[int]:
    """ "We pad each sample to a length divisible by the block size with mask tokens"."""
    while len(tokens) % block_size:
        tokens = [*tokens, mask_id]
    return tokens


def may_attend(query: int, key: int, length: int, block_size: int) -> bool:
    """The mask over `[x_t ; x_0]`, each half `length` tokens."""
    query_is_noisy, key_is_noisy = query < length, key < length
    query_block, key_block = (query % length) // block_size, (key % length) // block_size
    if query_is_noisy and key_is_noisy:
        return query_block == key_block
    if query_is_noisy:
        return key_block < query_block
    if key_is_noisy:
        return False
    return key_block <= query_block


def dense_mask(length: int, block_size: int) -> Tensor:
    """[2 length, 2 length]."""
    return torch.tensor([[may_attend(q, k, length, block_size) for k in range(2 * length)] for q in range(2 * length)])


def document_loss(
    model: PreTrainedModel, tokens: list[int], is_response: list[bool], masked: list[bool], block_size: int, mask_id: int
) -> Tensor:
    """Summed cross-entropy of both copies of one document.

    Args:
        model: attends with transformers' own attention.
        tokens: without padding.
        is_response: tokens to be learned; the first token has no state before it and is none.
        masked: what the noise masks in the first copy, where it may.
    """
    clean = padded(tokens, block_size, mask_id)
    length = len(clean)
    mask = dense_mask(length, block_size)
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    total = torch.zeros(())
    for is_complement in (False, True):
        noisy = list(clean)
        targets: list[tuple[int, int]] = []
        for position in range(len(tokens)):
            if is_response[position] and masked[position] != is_complement:
                noisy[position] = mask_id
                targets.append((position - 1, tokens[position]))
        if not targets:
            continue
        positions = torch.tensor([[*range(length), *range(length)]])
        output = model(input_ids=torch.tensor([noisy + clean]), position_ids=positions, attention_mask=bias, use_cache=False)
        for state, target in targets:
            total = total + F.cross_entropy(output.logits[0, state].float(), torch.tensor(target))
    return total
