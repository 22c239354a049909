"""Shards are immutable, whole or absent, and an altered one is refused by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wfray.data.corpus import map_arrays
from wfray.data.packing import pack
from wfray.data.shards import find_shard, write_shard
from wfray.runs import sha256_of


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_rows_come_back_and_equal_rows_make_equal_files(tmp_path: Path, make_documents: Callable[..., list[np.ndarray]]) -> None:
    rows = pack(make_documents(1, 50, 40), 16, 0)
    records = [write_shard(tmp_path / directory, "a", rows) for directory in ("x", "y")]
    assert records[0] == records[1]
    assert records[0].num_rows == len(rows.input_ids) and records[0].num_tokens == rows.input_ids.size
    assert find_shard(tmp_path / "x", "a") == records[0]
    assert find_shard(tmp_path / "x", "b") is None


def test_marks_travel_with_their_tokens_and_plain_shards_have_none(tmp_path: Path, make_documents: Callable) -> None:
    documents = make_documents(1, 50, 40)
    marks = [(document % 3).astype(np.uint8) for document in documents]
    rows = pack(documents, 16, 0, marks)
    kept = sorted(document[:16].tobytes() for document in documents)
    assert sorted(piece.tobytes() for row in zip(rows.input_ids, rows.segment_ids, strict=True) for piece in pieces_of(*row)) == kept
    for tokens, segments, row_marks in zip(rows.input_ids, rows.segment_ids, rows.marks, strict=True):
        assert (row_marks == np.where(segments > 0, tokens % 3, 0)).all()
    assert rows.num_documents == 50 and rows.num_text_tokens == sum(min(16, len(document)) for document in documents)
    assert rows.num_cut_documents == sum(len(document) > 16 for document in documents) > 0
    record = write_shard(tmp_path, "marked", rows)
    assert find_shard(tmp_path, "marked") == record
    assert np.array_equal(map_arrays(tmp_path / record.file)["marks"], rows.marks)
    plain = write_shard(tmp_path, "plain", pack(documents, 16, 0))
    assert set(map_arrays(tmp_path / plain.file)) == {"input_ids", "segment_ids"}


def pieces_of(tokens: np.ndarray, segments: np.ndarray) -> list[np.ndarray]:
    return [tokens[segments == segment] for segment in range(1, segments.max() + 1)]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_shard_is_not_taken_for_whole(tmp_path: Path, damage: str, make_documents: Callable) -> None:
    rows = pack(make_documents(1, 50, 40), 16, 0)
    path = tmp_path / write_shard(tmp_path, "a", rows).file
    before = sha256_of(path)
    if damage == "flipped":
        flip_last_byte(path)
    else:
        path.write_bytes(path.read_bytes()[:-10] if damage == "truncated" else b"")
    assert find_shard(tmp_path, "a") is None
    write_shard(tmp_path, "a", rows)
    assert sha256_of(path) == before
