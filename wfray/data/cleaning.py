"""Which documents are kept: length, language, and words shared with evaluation sets; and the count of what was left out.

Evaluation sets are kept out by runs of words: a document goes when any `num_words` consecutive words of it, in lower case and
without punctuation, also stand in an evaluation set (13 words, as in GPT-3's appendix C, arXiv 2005.14165). A run is one 64-bit
number, the polynomial of its words' hashes modulo 2^64, so the runs of a document are a few vector operations, and all runs of
the evaluation sets are one sorted array: 8 bytes a run, mapped from a file that all workers share. A sentence of fewer words has
no run, so it can neither be found nor hit.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from py3langid import classify

from wfray.config.data import Source
from wfray.data.removed import Removed

WORD = re.compile(r"\w+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial: odd, so no word's hash is lost modulo 2^64."""
LANGUAGE_CHARACTERS = 2000
"""Of a document's beginning, by which its language is identified."""


class EvaluationRuns:
    """The word runs of evaluation sets."""

    def __init__(self, file: Path, num_words: int) -> None:
        """Map the sorted runs in `file`, written by `write_runs` for the same number of words."""
        self._runs = np.load(file, mmap_mode="r")
        self._num_words = num_words

    def meets(self, text: str) -> bool:
        """Whether any run of `text` is one of them."""
        runs = word_runs(text, self._num_words)
        found = np.searchsorted(self._runs, runs)
        return bool((self._runs[np.minimum(found, len(self._runs) - 1)] == runs).any()) if len(self._runs) else False


def write_runs(file: Path, texts: Iterable[str], num_words: int) -> int:
    """Write the sorted runs of all `texts` as an npy file; returns their number."""
    runs = np.unique(np.concatenate([np.empty(0, np.uint64), *(word_runs(text, num_words) for text in texts)]))
    with file.open("wb") as content:
        np.save(content, runs)
    return len(runs)


def word_runs(text: str, num_words: int) -> NDArray[np.uint64]:
    """One number for each `num_words` consecutive words of `text`; uint64 [number of words - num_words + 1]."""
    hashes = np.fromiter((word_hash(word.group()) for word in WORD.finditer(text.lower())), dtype=np.uint64)
    count = len(hashes) - num_words + 1
    runs = np.zeros(max(count, 0), dtype=np.uint64)
    for offset in range(num_words if count > 0 else 0):
        runs = runs * MULTIPLIER + hashes[offset : offset + count]
    return runs


def word_hash(word: str) -> int:
    """A 64-bit number of one word."""
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


class Cleaner:
    """Decides on documents of one source and counts what is left out."""

    def __init__(self, source: Source, evaluation_runs: EvaluationRuns | None) -> None:
        """Clean as `source` states; without `evaluation_runs`, evaluation sets are not looked for."""
        self._source = source
        self._evaluation_runs = evaluation_runs
        self.removed: dict[str, Removed] = {}

    def keeps(self, text: str, name: str) -> bool:
        """Whether the document is kept; if not, it is counted under `name`."""
        reason = self.reason(text)
        if reason:
            self.remove(reason, name, len(text))
        return reason is None

    def reason(self, text: str) -> str | None:
        """Why a document is left out; None where it is kept. The cheapest question comes first."""
        source = self._source
        if len(text.strip()) < source.min_characters:
            return "too_short"
        if source.max_characters is not None and len(text) > source.max_characters:
            return "too_long"
        if source.languages and language_of(text) not in source.languages:
            return "language"
        if self._evaluation_runs and self._evaluation_runs.meets(text):
            return "evaluation_overlap"
        return None

    def remove(self, reason: str, name: str, num_characters: int = 0) -> None:
        """Count one document, or one file."""
        removed = Removed(documents=1, characters=num_characters, examples=[name])
        self.removed[reason] = self.removed.get(reason, Removed()) + removed


def language_of(text: str) -> str:
    """ISO 639-1 code of the language, of py3langid's 97, that the beginning of `text` is most likely in."""
    return str(classify(text[:LANGUAGE_CHARACTERS])[0])
