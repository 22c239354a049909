"""Best-fit packing: documents into rows of S tokens, none that fits a row is cut, nothing is lost.

A document longer than S is cut into pieces of S tokens; its last piece is packed like a document. Pieces are placed longest
first, each into the row whose free space is the smallest that holds it, the oldest such row on a tie, or into a new row
(best-fit decreasing, after "Fewer Truncations Improve Language Modeling", arXiv 2404.10830). Rows are kept in one heap per
free space and the free spaces in use in a sorted list of at most S numbers, so a placement costs O(log S) and the whole
O(N log N) for N documents. On real text with thousands of documents the padding left is below 1%.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Piece:
    """Tokens `start:stop` of document number `document`."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PackedRows:
    """Packed rows and what packing did."""

    input_ids: NDArray[np.int32]
    """[N, S]; padding holds the padding token."""
    segment_ids: NDArray[np.int16]
    """[N, S]; 1.. per piece in its row, 0 is padding."""
    num_documents: int
    num_text_tokens: int
    """Positions that are not padding."""
    num_cut_documents: int
    """Documents longer than a row."""
    marks: NDArray[np.uint8] | None = None
    """[N, S]; what each token is to the loss (see `wfray.data.batch`); None: plain text, every token is learned."""

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return self.num_text_tokens / self.input_ids.size

    def first(self, num_rows: int, num_cut_documents: int) -> "PackedRows":
        """The first `num_rows` rows, of whose documents `num_cut_documents` are longer than a row."""
        segment_ids_NS = self.segment_ids[:num_rows]
        return PackedRows(
            input_ids=self.input_ids[:num_rows],
            segment_ids=segment_ids_NS,
            num_documents=int(segment_ids_NS.max(axis=1).sum()),
            num_text_tokens=int(np.count_nonzero(segment_ids_NS)),
            num_cut_documents=num_cut_documents,
            marks=None if self.marks is None else self.marks[:num_rows],
        )


def pack(
    documents: list[NDArray[np.int32]], sequence_length: int, padding_id: int, marks: list[NDArray[np.uint8]] | None = None
) -> PackedRows:
    """Pack tokenized documents, each ending with its end-of-text token, into rows.

    Args:
        documents: int32 [length] each; empty ones are not allowed.
        sequence_length: S.
        padding_id: the token at positions that belong to no document.
        marks: for conversations, the mark of each token. Of a conversation longer than a row the first S tokens are kept: a
            response without its prompt is no example.
    """
    pieces = cut(documents, sequence_length)
    if marks is not None:
        pieces = [piece for piece in pieces if piece.start == 0]
    rows = place(pieces, sequence_length)
    input_ids_NS = np.full((len(rows), sequence_length), padding_id, dtype=np.int32)
    segment_ids_NS = np.zeros((len(rows), sequence_length), dtype=np.int16)
    marks_NS = None if marks is None else np.zeros((len(rows), sequence_length), dtype=np.uint8)
    for row, placed in enumerate(rows):
        position = 0
        for segment, piece in enumerate(placed, start=1):
            span = slice(position, position + piece.length)
            input_ids_NS[row, span] = documents[piece.document][piece.start : piece.stop]
            segment_ids_NS[row, span] = segment
            if marks is not None and marks_NS is not None:
                marks_NS[row, span] = marks[piece.document][piece.start : piece.stop]
            position += piece.length
    return PackedRows(
        input_ids=input_ids_NS,
        segment_ids=segment_ids_NS,
        num_documents=len(documents),
        num_text_tokens=sum(piece.length for piece in pieces),
        num_cut_documents=sum(len(document) > sequence_length for document in documents),
        marks=marks_NS,
    )


def concatenate(documents: list[NDArray[np.int32]], sequence_length: int, padding_id: int) -> PackedRows:
    """Join documents in their order and cut every row where it ends, whatever is cut; only the last row is padded.

    Arguments as of `pack`. A document's piece in each row is a segment of its own. `num_cut_documents` counts the documents that
    stand in more than one row.
    """
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    num_rows = -(-int(ends[-1]) // sequence_length)
    input_ids = np.full(num_rows * sequence_length, padding_id, dtype=np.int32)
    input_ids[: ends[-1]] = np.concatenate(documents)
    numbers = np.zeros(num_rows * sequence_length, dtype=np.int64)
    numbers[: ends[-1]] = np.repeat(np.arange(1, len(documents) + 1), lengths)
    numbers_NS = numbers.reshape(num_rows, sequence_length)
    segment_ids_NS = np.where(numbers_NS > 0, numbers_NS - numbers_NS[:, :1] + 1, 0).astype(np.int16)
    return PackedRows(
        input_ids=input_ids.reshape(num_rows, sequence_length),
        segment_ids=segment_ids_NS,
        num_documents=len(documents),
        num_text_tokens=int(ends[-1]),
        num_cut_documents=int((starts // sequence_length != (ends - 1) // sequence_length).sum()),
    )


def cut(documents: list[NDArray[np.int32]], sequence_length: int) -> list[Piece]:
    """Whole documents where they fit, else consecutive pieces of at most `sequence_length` tokens."""
    return [
        Piece(number, start, min(start + sequence_length, len(document)))
        for number, document in enumerate(documents)
        for start in range(0, len(document), sequence_length)
    ]


def place(pieces: list[Piece], sequence_length: int) -> list[list[Piece]]:
    """Best-fit decreasing: the pieces of each row, in the order in which they were placed."""
    rows: list[list[Piece]] = []
    rows_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        found = bisect_left(spaces, piece.length)
        if found < len(spaces):
            space = spaces[found]
            row = heappop(rows_by_space[space])
            if not rows_by_space[space]:
                spaces.pop(found)
        else:
            space, row = sequence_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = space - piece.length
        if left and not rows_by_space.get(left):
            insort(spaces, left)
        if left:
            heappush(rows_by_space.setdefault(left, []), row)
    return rows
