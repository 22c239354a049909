"""The mixed stream: rows of all sources in one deterministic order that can be left and taken up anywhere.

Within a source, the rows of an epoch come in a permutation drawn from (seed, source, epoch), so each row is served exactly
once per epoch and sources have epochs of their own. The next row comes from the source that is furthest behind its weight
in tokens (positions of packed rows), counted from the last change of the weights; ties go to the source listed first.
Realised shares therefore never stray from the weights by more than a few rows.

`MixedStream.cursor` is the whole state: a stream made with it serves exactly the rows that the other would have served next.
Weights may change between any two rows; the cursor keeps all that were in force, and what they were learned from. There is one
global order. Several workers take the same global batch, each its contiguous slice of rows, so that their
number may change at any resume. A permutation is drawn anew when an epoch begins or a stream is resumed: O(rows of the
source), about 8 bytes a row.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from wfray.data.batch import PackedBatch, make_batch
from wfray.data.corpus import PackedCorpus
from wfray.data.shards import Split


class SourcePosition(BaseModel):
    """Where one source stands."""

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    row: int = 0
    """Rows of this epoch already served: the position in its permutation."""
    tokens: int = 0
    """Tokens served in all."""


class Mixture(BaseModel):
    """Weights, and when they began."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample_index: int
    """The first row that they choose."""
    weights: dict[str, float]
    """Shares of the tokens, summing to 1."""
    tokens: dict[str, int]
    """Tokens that each source had served when they began."""
    learned_from: dict[str, float] = {}
    """The figure of each source from which the weights were learned (see `wfray.train.mixing`); empty where they were given."""


class Cursor(BaseModel):
    """The position of a stream: plain data, `model_dump_json` and `model_validate_json` keep it exactly."""

    model_config = ConfigDict(extra="forbid")

    corpus: str
    """`CorpusIndex.identity` of the corpus that it is a position in."""
    split: Split
    seed: int
    sample_index: int = 0
    """Number of the next row."""
    sources: dict[str, SourcePosition]
    history: list[Mixture]
    """All weights so far; the last ones are in force."""

    @property
    def tokens(self) -> int:
        """Tokens served in all."""
        return sum(position.tokens for position in self.sources.values())


class MixedStream:
    """Serves packed rows of a corpus, mixed by weight."""

    def __init__(
        self,
        corpus: PackedCorpus,
        split: Split = "train",
        weights: Mapping[str, float] | None = None,
        *,
        seed: int,
        cursor: Cursor | None = None,
    ) -> None:
        """Begin a stream, or go on from `cursor`.

        Args:
            corpus: the packed corpus.
            split: `train` or `heldout`.
            weights: share of each source, relative to each other; None takes the cursor's, else the corpus's. Weights that
                differ from the cursor's are in force from here on.
            seed: draws the permutations.
            cursor: where another stream over the same corpus, split and seed stood.

        Raises:
            ValueError: weights name other sources than the corpus's, are negative, or all 0; the cursor belongs to another
                corpus, split or seed.
        """
        self.corpus = corpus
        self.split: Split = split
        if cursor is None:
            positions = {name: SourcePosition() for name in corpus.source_names}
            cursor = Cursor(corpus=corpus.index.identity, split=split, seed=seed, sources=positions, history=[])
            weights = weights or corpus.weights
        check_cursor(cursor, corpus, split, seed)
        self._cursor = cursor.model_copy(deep=True)
        self._permutations: dict[str, tuple[int, NDArray[np.int64]]] = {}
        self._num_rows = {name: corpus.split(name, split).num_rows for name in corpus.source_names}
        self._numbers = {name: number for number, name in enumerate(corpus.source_names)}
        if weights is not None:
            self.set_weights(weights)

    @property
    def cursor(self) -> Cursor:
        """The position before the next row: a copy, so a kept cursor does not move."""
        positions = {name: position.model_copy() for name, position in self._cursor.sources.items()}
        return self._cursor.model_copy(update={"sources": positions, "history": list(self._cursor.history)})

    @property
    def history(self) -> list[Mixture]:
        """All weights so far; the last ones are in force."""
        return list(self._cursor.history)

    @property
    def weights(self) -> dict[str, float]:
        """The shares in force, summing to 1, in the corpus's order."""
        return dict(self._cursor.history[-1].weights)

    def set_weights(self, weights: Mapping[str, float], learned_from: Mapping[str, float] | None = None) -> None:
        """Mix by `weights` from the next row on and record the change; equal weights that were not learned change nothing.

        Args:
            weights: see the constructor.
            learned_from: the figure of each source that the weights follow from; kept in the cursor's history.

        Raises:
            ValueError: see the constructor.
        """
        normalised = normalise(weights, self.corpus.source_names)
        history = self._cursor.history
        if history and history[-1].weights == normalised and learned_from is None:
            return
        tokens = {name: position.tokens for name, position in self._cursor.sources.items()}
        start = self._cursor.sample_index
        history.append(Mixture(sample_index=start, weights=normalised, tokens=tokens, learned_from=dict(learned_from or {})))

    def take(self, num_rows: int) -> PackedBatch:
        """The next `num_rows` rows as one batch, B = num_rows.

        Raises:
            ValueError: a shard that is needed was altered.
        """
        first = self._cursor.sample_index
        chosen = self.advance(num_rows)
        return self._batch(chosen, np.arange(first, first + num_rows, dtype=np.int64))

    def advance(self, num_rows: int) -> list[tuple[str, int]]:
        """Step past the next `num_rows` rows without reading them; the source and number of each, in order."""
        return [self._advance() for _ in range(num_rows)]

    def peek(self, source: str, num_rows: int) -> PackedBatch:
        """The rows of `source` that come next, read but not served: they keep their places, and have no number (-1) yet."""
        position, size = self._cursor.sources[source], self._num_rows[source]
        order = self._permutation(source, position.epoch)[position.row : position.row + num_rows]
        for epoch in range(position.epoch + 1, position.epoch + 1 + math.ceil((num_rows - len(order)) / size)):
            order = np.concatenate([order, permutation(size, self._cursor.seed, source, epoch)])
        return self._batch([(source, int(row)) for row in order[:num_rows]], np.full(num_rows, -1, dtype=np.int64))

    def _batch(self, chosen: list[tuple[str, int]], sample_index_B: NDArray[np.int64]) -> PackedBatch:
        rows = self.corpus.read(self.split, chosen)
        source_ids_B = np.array([self._numbers[source] for source, _ in chosen], dtype=np.int16)
        return make_batch(rows.input_ids, rows.segment_ids, source_ids_B, sample_index_B, rows.marks)

    def _advance(self) -> tuple[str, int]:
        """Choose the next row, step past it and return its source and number."""
        name = self._furthest_behind()
        position = self._cursor.sources[name]
        row = int(self._permutation(name, position.epoch)[position.row])
        position.row += 1
        position.tokens += self.corpus.index.sequence_length
        if position.row == self._num_rows[name]:
            position.epoch, position.row = position.epoch + 1, 0
        self._cursor.sample_index += 1
        return name, row

    def _furthest_behind(self) -> str:
        mixture = self._cursor.history[-1]
        sequence_length = self.corpus.index.sequence_length
        due = (self._cursor.sample_index - mixture.sample_index + 1) * sequence_length

        def behind(name: str) -> float:
            return mixture.weights[name] * due - (self._cursor.sources[name].tokens - mixture.tokens[name])

        return max((name for name, weight in mixture.weights.items() if weight > 0), key=behind)

    def _permutation(self, name: str, epoch: int) -> NDArray[np.int64]:
        if self._permutations.get(name, (-1,))[0] != epoch:
            self._permutations[name] = (epoch, permutation(self._num_rows[name], self._cursor.seed, name, epoch))
        return self._permutations[name][1]


def permutation(num_rows: int, seed: int, name: str, epoch: int) -> NDArray[np.int64]:
    """The order of a source's rows in one epoch: a permutation of `num_rows` numbers."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{epoch}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(num_rows)


def normalise(weights: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Weights in the corpus's order, summing to 1."""
    if set(weights) != set(names):
        raise ValueError(f"weights must name each source of the corpus once: {', '.join(names)}; they name: {', '.join(weights)}")
    if any(weight < 0 for weight in weights.values()):
        raise ValueError(f"weights must not be negative: {dict(weights)}")
    total = sum(weights[name] for name in names)
    if total == 0:
        raise ValueError("every weight is 0, so there is nothing to mix; give at least one source a weight > 0")
    return {name: weights[name] / total for name in names}


def check_cursor(cursor: Cursor, corpus: PackedCorpus, split: Split, seed: int) -> None:
    """Raise `ValueError` unless `cursor` is a position in this stream."""
    stated = {"corpus": cursor.corpus, "split": cursor.split, "seed": cursor.seed}
    actual = {"corpus": corpus.index.identity, "split": split, "seed": seed}
    for key, value in actual.items():
        if stated[key] != value:
            raise ValueError(
                f"the cursor belongs to a stream of {key} {stated[key]!r}, this one is of {key} {value!r}: resume with what it "
                "was begun with, or begin a new run"
            )


def joined(batches: Sequence[PackedBatch]) -> PackedBatch:
    """The rows of several batches as one."""
    return cast(PackedBatch, {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})  # type: ignore[literal-required]


def heldout(corpus: PackedCorpus, source: str, num_rows: int, start: int = 0) -> PackedBatch:
    """Held-out rows of `source`, always the same: `num_rows` of them from number `start` on.

    Raises:
        ValueError: there is no such source, or it has fewer held-out rows.
    """
    numbers = np.arange(start, start + num_rows, dtype=np.int64)
    rows = corpus.read_rows(source, "heldout", numbers.tolist())
    source_ids_B = np.full(num_rows, corpus.source_names.index(source), dtype=np.int16)
    return make_batch(rows.input_ids, rows.segment_ids, source_ids_B, numbers, rows.marks)
