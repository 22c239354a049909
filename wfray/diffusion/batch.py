"""From a packed batch to the row of blocks that a training step runs, and back to the packed positions.

Every document is cut into blocks and filled up to whole ones with the mask token; what is filled in carries no loss. It stands in the
row up to three times: clean, and in two noisy copies with complementary masks. The state at position i - 1 of a noisy copy predicts
token i where that copy masks it (token shift); each response token is masked in one copy, so every target of the packed batch is
predicted once, and the loss is taken at the packed positions, with the packed targets and the teacher's signals as they are.

Left out, since neither loss nor gradient can tell (the tests compare with the paper's whole `[x_t ; x_0]`, twice): noisy blocks that
predict nothing, such as those of a prompt; clean blocks that no noisy one looks back at, a document's last among them; and the second
clean half, which would be equal to the first. For N response tokens in long documents that is 3 N tokens a step instead of 4 N.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wfray.diffusion.blocks import CLEAN, Blocks
from wfray.diffusion.noise import row_noise
from wfray.student.segments import Segments, Span

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class BlockRow:
    """One row of blocks, N tokens."""

    input_ids: Tensor
    """int64 [N]."""
    position_ids: Tensor
    """int64 [N]; of each token in its document."""
    blocks: Blocks
    predictor_BS: Tensor
    """int64 [B, S]: where in the row the state is that predicts a packed position's target; 0 where there is no target."""
    first_copy_BS: Tensor
    """int64 [B, S]: where the token itself stands in the first noisy copy; 0 where that copy has it not."""
    noisy: Segments
    """Blocks of the first noisy copy as spans of packed positions: what block-wise relations compare."""


@dataclass(frozen=True)
class Document:
    """One document of a packed batch."""

    span: Span
    tokens_L: Numbers
    first_position: int
    copies: tuple[NDArray[np.bool_], ...]
    """Mask of each noisy copy [L]."""


def block_row(batch: dict[str, Tensor], seed: int, block_size: int, mask_id: int) -> BlockRow:
    """The row of blocks of a packed batch.

    Args:
        batch: `input_ids`, `targets`, `position_ids`, `segment_ids` [B, S] and `sample_index` [B].
        seed: of the noise.
        block_size: tokens of a block.
        mask_id: the mask token.
    """
    arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
    noise_BS = np.stack(
        [
            row_noise(seed, int(number), positions_S, block_size)
            for number, positions_S in zip(arrays["sample_index"], arrays["position_ids"], strict=True)
        ]
    )
    builder = RowBuilder(block_size, mask_id, arrays["input_ids"].shape)
    for span in Segments.of(batch["segment_ids"]).documents:
        builder.add(document_of(arrays, noise_BS, span))
    return builder.build()


def document_of(arrays: dict[str, NDArray], noise_BS: NDArray[np.bool_], span: Span) -> Document:
    """One document with its two masks; a token may be masked where the position before it has it as its target."""
    row, start, end = span
    maskable_L = np.zeros(end - start, dtype=bool)
    maskable_L[1:] = arrays["targets"][row, start : end - 1] != -100
    noise_L = noise_BS[row, start:end]
    tokens_L = arrays["input_ids"][row, start:end].astype(np.int64)
    return Document(span, tokens_L, int(arrays["position_ids"][row, start]), (maskable_L & noise_L, maskable_L & ~noise_L))


class RowBuilder:
    """Collects the blocks of documents in order."""

    def __init__(self, block_size: int, mask_id: int, packed_shape: tuple[int, ...]) -> None:
        self.size, self.mask_id = block_size, mask_id
        self.tokens: list[Numbers] = []
        self.positions: list[Numbers] = []
        self.blocks: list[tuple[int, int, int]] = []
        self.predictor_BS, self.first_copy_BS = np.zeros(packed_shape, np.int64), np.zeros(packed_shape, np.int64)
        self.noisy: list[Span] = []
        self.num_documents = 0

    def add(self, document: Document) -> None:
        """Append what a document needs; nothing where it has no target."""
        needed = [np.unique((np.flatnonzero(mask_L) - 1) // self.size) for mask_L in document.copies]
        last = max((int(numbers[-1]) for numbers in needed if len(numbers)), default=-1)
        self._append(document, document.tokens_L, CLEAN, np.arange(max(last, 0)))
        for copy, (mask_L, numbers) in enumerate(zip(document.copies, needed, strict=True), start=1):
            self._append(document, np.where(mask_L, self.mask_id, document.tokens_L), copy, numbers)
            predictors_L = np.flatnonzero(mask_L) - 1
            place_of_block = len(self.blocks) - len(numbers) + np.searchsorted(numbers, predictors_L // self.size)
            row, start, _ = document.span
            self.predictor_BS[row, start + predictors_L] = place_of_block * self.size + predictors_L % self.size
            if copy == 1:
                self._note_first_copy(document, numbers)
        self.num_documents += 1

    def _append(self, document: Document, tokens_L: Numbers, copy: int, numbers: Numbers) -> None:
        """Append the blocks `numbers` of a document with these tokens."""
        for number in numbers.tolist():
            begin = number * self.size
            block = np.full(self.size, self.mask_id, np.int64)
            own = tokens_L[begin : begin + self.size]
            block[: len(own)] = own
            self.tokens.append(block)
            self.positions.append(document.first_position + begin + np.arange(self.size))
            self.blocks.append((self.num_documents, number, copy))

    def _note_first_copy(self, document: Document, numbers: Numbers) -> None:
        """Where the packed positions of the blocks just appended are in the row."""
        row, start, end = document.span
        for place, number in enumerate(numbers.tolist(), start=len(self.blocks) - len(numbers)):
            begin = start + number * self.size
            stop = min(begin + self.size, end)
            self.first_copy_BS[row, begin:stop] = place * self.size + np.arange(stop - begin)
            self.noisy.append((row, begin, stop))

    def build(self) -> BlockRow:
        """The row; one clean block where no document has a target, so that every worker runs every layer in every step."""
        if not self.blocks:
            self.tokens, self.positions = [np.full(self.size, self.mask_id, np.int64)], [np.arange(self.size)]
            self.blocks = [(0, 0, CLEAN)]
        document, number, copy = torch.tensor(self.blocks).T
        return BlockRow(
            torch.from_numpy(np.concatenate(self.tokens)),
            torch.from_numpy(np.concatenate(self.positions)),
            Blocks(document, number, copy, self.size),
            torch.from_numpy(self.predictor_BS),
            torch.from_numpy(self.first_copy_BS),
            Segments(tuple(self.noisy), tuple(self.noisy)),
        )
