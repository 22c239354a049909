"""Reading a packed corpus: rows across shards, few open files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.wfray.data.test_shards import flip_last_byte
from wfray.data.batch import RESPONSE
from wfray.data.corpus import PackedCorpus


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
    monkeypatch.setattr("wfray.data.corpus.MOST_MAPPED", 1)
    limited = PackedCorpus(corpus.directory)
    numbers = list(range(corpus.split("large", "train").num_rows)) * 2
    assert len(corpus.split("large", "train").shards) > 1
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows = limited.read_rows("large", "train", numbers)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert np.array_equal(rows.input_ids, corpus.read_rows("large", "train", numbers).input_ids)


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
