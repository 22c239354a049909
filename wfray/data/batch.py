"""The packed batch: what the corpus hands to a student or a teacher, and how it follows from tokens and segments.

Shapes: B rows of S tokens. A segment is one document, or one piece of a document longer than a row. Targets are already
shifted: `targets[b, s]` is the token to be predicted from position s, so nobody shifts again.

Each token of a conversation carries a mark: context (the template, the prompts), response, or label (a response that names the
class of an example). Context is read, never predicted. Every token of plain text is a response.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

NO_TARGET = -100
CONTEXT, RESPONSE, LABEL = 0, 1, 2
"""Marks of tokens."""


class PackedBatch(TypedDict):
    """Rows of packed documents, aligned position by position."""

    input_ids: NDArray[np.int32]
    """[B, S]."""
    targets: NDArray[np.int32]
    """[B, S]; -100 where nothing is predicted: the last token of a segment, before a token of context, and padding."""
    position_ids: NDArray[np.int32]
    """[B, S]; restarts at 0 in each segment, and where padding begins."""
    segment_ids: NDArray[np.int32]
    """[B, S]; 1.. in each row, 0 is padding. Attention never crosses a segment."""
    source_ids: NDArray[np.int16]
    """[B, S]; index of the row's source in the corpus."""
    sample_index: NDArray[np.int64]
    """[B]; the row's global number in the stream."""


def make_batch(
    input_ids_BS: NDArray[np.int32],
    segment_ids_BS: NDArray[np.integer],
    source_ids_B: NDArray[np.int16],
    sample_index_B: NDArray[np.int64],
    marks_BS: NDArray[np.uint8] | None = None,
) -> PackedBatch:
    """Derive a batch from tokens, segments and marks.

    Args:
        input_ids_BS: tokens [B, S].
        segment_ids_BS: segment of each token [B, S], ascending from 1 without gaps, then 0 to the end of the row.
        source_ids_B: source of each row [B].
        sample_index_B: number of each row in the stream [B].
        marks_BS: mark of each token [B, S]; None where all are responses.
    """
    segments_BS = segment_ids_BS.astype(np.int32)
    targets_BS = derive_targets(input_ids_BS, segments_BS)
    if marks_BS is not None:
        targets_BS[:, :-1][marks_BS[:, 1:] == CONTEXT] = NO_TARGET
    return PackedBatch(
        input_ids=input_ids_BS.astype(np.int32),
        targets=targets_BS,
        position_ids=derive_positions(segments_BS),
        segment_ids=segments_BS,
        source_ids=np.broadcast_to(source_ids_B.astype(np.int16)[:, None], input_ids_BS.shape).copy(),
        sample_index=sample_index_B.astype(np.int64),
    )


def derive_targets(input_ids_BS: NDArray[np.int32], segment_ids_BS: NDArray[np.int32]) -> NDArray[np.int32]:
    """The next token where it belongs to the same segment, else -100; int32 [B, S]."""
    targets_BS = np.full(input_ids_BS.shape, NO_TARGET, dtype=np.int32)
    same = (segment_ids_BS[:, 1:] == segment_ids_BS[:, :-1]) & (segment_ids_BS[:, 1:] > 0)
    targets_BS[:, :-1][same] = input_ids_BS[:, 1:][same]
    return targets_BS


def derive_positions(segment_ids_BS: NDArray[np.int32]) -> NDArray[np.int32]:
    """Distance from the first position of the segment, int32 [B, S]."""
    index_S = np.arange(segment_ids_BS.shape[1], dtype=np.int32)
    starts_BS = np.zeros(segment_ids_BS.shape, dtype=np.int32)
    begins = segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]
    starts_BS[:, 1:] = np.where(begins, index_S[1:], 0)
    return index_S - np.maximum.accumulate(starts_BS, axis=1)


def label_spans(segment_ids_BS: NDArray[np.integer], marks_BS: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where the labels stand: (row, start, stop) of each [num_labels, 3], in reading order; `start - 1` predicts its first token."""
    is_label_BS = np.pad(marks_BS == LABEL, ((0, 0), (1, 1)))
    same_BS = np.pad(segment_ids_BS[:, 1:] == segment_ids_BS[:, :-1], ((0, 0), (1, 1)))
    starts = is_label_BS[:, 1:-1] & ~(is_label_BS[:, :-2] & same_BS[:, :-1])
    stops = is_label_BS[:, 1:-1] & ~(is_label_BS[:, 2:] & same_BS[:, 1:])
    rows, first = np.nonzero(starts)
    return np.stack([rows, first, np.nonzero(stops)[1] + 1], axis=1)
