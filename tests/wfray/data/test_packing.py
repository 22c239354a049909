"""Best-fit packing against a brute-force reference; nothing is lost, nothing that fits is cut."""

from collections.abc import Callable

import numpy as np
import pytest

from wfray.data.packing import Piece, concatenate, cut, pack, place

MakeDocuments = Callable[[int, int, int], list[np.ndarray]]


def place_by_brute_force(pieces: list[Piece], sequence_length: int) -> list[list[Piece]]:
    """Best-fit decreasing by looking at every row for every piece."""
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        spaces = [sequence_length - sum(other.length for other in row) for row in rows]
        fitting = [(space, number) for number, space in enumerate(spaces) if space >= piece.length]
        if fitting:
            rows[min(fitting)[1]].append(piece)
        else:
            rows.append([piece])
    return rows


@pytest.mark.parametrize("seed", range(30))
def test_placement_equals_brute_force(seed: int, make_documents: MakeDocuments) -> None:
    pieces = cut(make_documents(seed, 1 + seed * 4, 30), 16)
    assert place(pieces, 16) == place_by_brute_force(pieces, 16)


@pytest.mark.parametrize("sequence_length", [8, 16, 64])
def test_every_token_is_kept_and_only_long_documents_are_cut(sequence_length: int, make_documents: MakeDocuments) -> None:
    documents = make_documents(1, 200, 40)
    packed = pack(documents, sequence_length, padding_id=7)
    segments = [
        packed.input_ids[row][packed.segment_ids[row] == segment].tolist()
        for row in range(len(packed.input_ids))
        for segment in range(1, packed.segment_ids[row].max() + 1)
    ]
    expected = [
        document[start : start + sequence_length].tolist() for document in documents for start in range(0, len(document), sequence_length)
    ]
    assert sorted(segments) == sorted(expected)
    assert (packed.input_ids[packed.segment_ids == 0] == 7).all()
    assert packed.num_cut_documents == sum(len(document) > sequence_length for document in documents)
    assert packed.num_text_tokens == sum(map(len, documents)) == np.count_nonzero(packed.segment_ids)
    assert packed.num_documents == 200


def test_segments_ascend_and_padding_is_last(make_documents: MakeDocuments) -> None:
    packed = pack(make_documents(2, 100, 40), 16, padding_id=0)
    for row in packed.segment_ids:
        used = row[row > 0]
        assert (np.diff(used) >= 0).all() and (np.diff(used) <= 1).all() and used[0] == 1
        assert (row[len(used) :] == 0).all()


def test_many_documents_fill_rows(make_documents: MakeDocuments) -> None:
    packed = pack(make_documents(3, 5000, 300), 512, padding_id=0)
    assert packed.fill > 0.995


@pytest.mark.parametrize("sequence_length", [8, 16, 64])
def test_concatenation_is_one_text_cut_at_every_row(sequence_length: int, make_documents: MakeDocuments) -> None:
    documents = make_documents(1, 200, 40)
    packed = concatenate(documents, sequence_length, padding_id=7)
    everything = np.concatenate(documents)
    assert np.array_equal(packed.input_ids.reshape(-1)[: len(everything)], everything)
    assert (
        packed.num_text_tokens == len(everything) == np.count_nonzero(packed.segment_ids)
        and packed.input_ids.size - len(everything) < sequence_length
    )
    owners = np.repeat(np.arange(200), [len(document) for document in documents])
    rows = [set(owners[start : start + sequence_length]) for start in range(0, len(everything), sequence_length)]
    assert [int(row.max()) for row in packed.segment_ids] == [len(row) for row in rows]
    assert packed.num_cut_documents == sum(sum(number in row for row in rows) > 1 for number in range(200))
    for row in packed.segment_ids[:-1]:
        assert row[0] == 1 and (np.diff(row) >= 0).all() and (np.diff(row) <= 1).all()
