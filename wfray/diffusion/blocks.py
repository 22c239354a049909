"""Blocks of documents, clean and noised, in one row of tokens, and the one rule of which block sees which.

A document is cut into blocks of `size` tokens, counted from its beginning. A block may stand in the row several times: clean
(`copy` 0), and in noisy copies 1, 2, ... in which some of its tokens are masked. Attention is whole blocks to whole blocks:

    a block sees the clean blocks before it, and itself, all of the same document.

For the paper's `[x_t ; x_0]` this is its mask of three parts: within a noisy block; from a noisy block to clean blocks strictly
before it; clean blocks causally, each of them seen by itself in both directions. No clean block ever sees a noisy one, so several
noisy copies share one clean document, and what nobody looks at need not stand in the row at all.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CLEAN = 0
NOWHERE = -1
"""The document of blocks that only fill a row up."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a row in their order; blocks of one document stand together, its clean ones first."""

    document: Tensor
    """int64 [blocks]."""
    number: Tensor
    """int64 [blocks]: the block's place in its document."""
    copy: Tensor
    """int64 [blocks]: 0 is clean."""
    size: int
    """Tokens of a block."""

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, chosen: slice | Tensor) -> "Blocks":
        return Blocks(self.document[chosen], self.number[chosen], self.copy[chosen], self.size)

    @cached_property
    def documents(self) -> list[tuple[int, int]]:
        """Half-open spans of blocks, one a document."""
        _, lengths = torch.unique_consecutive(self.document.cpu(), return_counts=True)
        ends = lengths.cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def to(self, device: torch.device) -> "Blocks":
        """The same on a device."""
        return Blocks(self.document.to(device), self.number.to(device), self.copy.to(device), self.size)


def sees(query: tuple[Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Whether a block attends to another; each is (document, number, copy), of shapes that broadcast."""
    (query_document, query_number, query_copy), (key_document, key_number, key_copy) = query, key
    earlier = (key_copy == CLEAN) & (key_number < query_number)
    itself = (key_copy == query_copy) & (key_number == query_number)
    return (query_document == key_document) & (earlier | itself)


def block_mask(query: Blocks, key: Blocks) -> Tensor:
    """Which block sees which: bool [query blocks, key blocks]."""
    of_query = (query.document[:, None], query.number[:, None], query.copy[:, None])
    return sees(of_query, (key.document[None], key.number[None], key.copy[None]))


def token_mask(query: Blocks, key: Blocks) -> Tensor:
    """Which token sees which: bool [query tokens, key tokens]."""
    mask = block_mask(query, key)
    return mask.repeat_interleave(query.size, dim=0).repeat_interleave(key.size, dim=1)
