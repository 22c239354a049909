"""Shards are immutable, whole or absent, and an altered one is refused by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wfray.data.batch import RESPONSE
from wfray.data.packing import pack
from wfray.data.shards import PackedCorpus, find_shard, map_arrays, write_shard
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


def test_rows_are_read_across_shards(corpus: PackedCorpus) -> None:
    num_rows = corpus.split("middle", "train").num_rows
    rows = corpus.read_rows("middle", "train", range(num_rows))
    one_by_one = [corpus.read_rows("middle", "train", [row]).input_ids for row in reversed(range(num_rows))]
    assert np.array_equal(np.concatenate(one_by_one[::-1]), rows.input_ids)
    assert rows.input_ids.dtype == np.int32 and rows.segment_ids.dtype == np.int16 and (rows.marks == RESPONSE).all()
    assert np.count_nonzero(rows.segment_ids) == corpus.split("middle", "train").num_text_tokens
    with pytest.raises(ValueError, match="middle has .* train rows"):
        corpus.read_rows("middle", "train", [num_rows])
    with pytest.raises(ValueError, match="no source 'other'; it has: large, middle, small"):
        corpus.read_rows("other", "train", [0])


def test_no_more_shards_stay_mapped_than_there_may_be_descriptors(corpus: PackedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfray.data.shards.MOST_MAPPED", 1)
    limited = PackedCorpus(corpus.directory)
    numbers = list(range(corpus.split("large", "train").num_rows)) * 2
    assert len(corpus.split("large", "train").shards) > 1
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows = limited.read_rows("large", "train", numbers)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert np.array_equal(rows.input_ids, corpus.read_rows("large", "train", numbers).input_ids)


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


def test_an_altered_shard_is_named(corpus: PackedCorpus) -> None:
    corpus.verify()
    shard = corpus.split("middle", "train").shards[1]
    flip_last_byte(corpus.directory / shard.file)
    fresh = PackedCorpus(corpus.directory)
    fresh.read_rows("middle", "train", [0])
    with pytest.raises(ValueError, match="middle-1.safetensors.*altered"):
        fresh.read_rows("middle", "train", [fresh.split("middle", "train").num_rows - 1])
    with pytest.raises(ValueError, match="middle-1.safetensors.*altered"):
        fresh.verify()


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


def test_an_unfinished_corpus_is_refused(corpus: PackedCorpus) -> None:
    shard = corpus.split("small", "heldout").shards[0]
    (corpus.directory / shard.file).unlink()
    with pytest.raises(ValueError, match="small-2.safetensors.*missing"):
        PackedCorpus(corpus.directory)
    index = corpus.directory / "corpus.json"
    index.write_text(index.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(ValueError, match="not a corpus index"):
        PackedCorpus(corpus.directory)
    index.unlink()
    with pytest.raises(ValueError, match="no corpus.json"):
        PackedCorpus(corpus.directory)


def test_another_tokenizer_is_refused(corpus: PackedCorpus) -> None:
    corpus.require_tokenizer("a" * 64)
    with pytest.raises(ValueError, match="another tokenizer"):
        corpus.require_tokenizer("b" * 64)
