"""Encoding in bounded batches and pieces gives the tokens of the whole text."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from wfray.data.encoding import Encoder, split_text


def long_text() -> str:
    """Code and documentation, with every kind of line end and indentation."""
    library = Path(sysconfig.get_path("stdlib"))
    return "\r\n\n".join((library / name).read_text(encoding="utf-8") for name in ("argparse.py", "typing.py", "heapq.py"))


@pytest.mark.parametrize("limit", [2000, 5000, 50_000])
def test_pieces_have_the_tokens_of_the_whole(encoder: Encoder, limit: int) -> None:
    text = long_text()
    pieces = list(split_text(text, limit))
    assert "".join(pieces) == text and len(pieces) > 2 and all(0 < len(piece) <= limit for piece in pieces)
    ids = [encoder.tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
    assert sum(ids, []) == encoder.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_text_without_a_seam_is_still_divided() -> None:
    pieces = list(split_text("x" * 2500, 1000))
    assert [len(piece) for piece in pieces] == [1000, 1000, 500]
    assert list(split_text("", 1000)) == [""]


def test_batches_of_any_size_give_each_text_its_tokens(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", *long_text().split("\n\n"), "last"]
    whole = encoder.encode(texts)
    monkeypatch.setattr("wfray.data.encoding.BATCH_CHARACTERS", 700)
    for tokens, expected, text in zip(encoder.encode(texts), whole, texts, strict=True):
        assert np.array_equal(tokens, expected) and tokens.dtype == np.int32 and tokens[-1] == encoder.end_id
        assert tokens[:-1].tolist() == encoder.tokenizer.encode(text, add_special_tokens=False).ids
