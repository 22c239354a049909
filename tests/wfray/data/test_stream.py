"""The mixed stream: exactly once an epoch, exact resume, weights in tokens."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from wfray.data.batch import PackedBatch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import Cursor, MixedStream, heldout


def rows_of(batch: PackedBatch) -> list[tuple[int, int, bytes]]:
    """Each row as (number, source, tokens)."""
    return [
        (int(index), int(source[0]), tokens.tobytes())
        for index, source, tokens in zip(batch["sample_index"], batch["source_ids"], batch["input_ids"], strict=True)
    ]


def all_rows(corpus: PackedCorpus, source: str) -> Counter[bytes]:
    rows = corpus.read_rows(source, "train", range(corpus.split(source, "train").num_rows))
    return Counter(row.tobytes() for row in rows.input_ids)


def test_each_epoch_of_each_source_is_the_packed_set_in_a_new_order(corpus: PackedCorpus) -> None:
    served: dict[int, list[bytes]] = defaultdict(list)
    for _, source, tokens in rows_of(MixedStream(corpus, seed=3).take(600)):
        served[source].append(tokens)
    for number, name in enumerate(corpus.source_names):
        size = corpus.split(name, "train").num_rows
        epochs = [served[number][start : start + size] for start in range(0, len(served[number]) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(Counter(epoch) == all_rows(corpus, name) for epoch in epochs)
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize("seed", range(3))
def test_resuming_anywhere_loses_doubles_and_reorders_nothing(corpus: PackedCorpus, seed: int) -> None:
    whole = rows_of(MixedStream(corpus, seed=seed).take(400))
    generator = np.random.default_rng(seed)
    resumed, state = [], None
    while len(resumed) < 400:
        cursor = Cursor.model_validate_json(state) if state else None
        stream = MixedStream(PackedCorpus(corpus.directory), seed=seed, cursor=cursor)
        for _ in range(generator.integers(1, 4)):
            resumed += rows_of(stream.take(int(generator.integers(1, 9))))
            state = stream.cursor.model_dump_json()
        stream.take(5)
    assert resumed[:400] == whole


def test_the_order_is_that_of_the_seed(corpus: PackedCorpus) -> None:
    first, same, other = (rows_of(MixedStream(corpus, seed=seed).take(50)) for seed in (1, 1, 2))
    assert first == same != other


def test_a_batch_does_not_depend_on_how_it_is_taken(corpus: PackedCorpus) -> None:
    stream = MixedStream(corpus, seed=0)
    pieces = [row for size in (1, 7, 32, 10) for row in rows_of(stream.take(size))]
    assert pieces == rows_of(MixedStream(corpus, seed=0).take(50))
    assert stream.cursor.tokens == 50 * corpus.index.sequence_length and stream.cursor.sample_index == 50


@pytest.mark.parametrize("weights", [None, {"large": 1, "middle": 1, "small": 1}, {"large": 7, "middle": 0, "small": 2}])
def test_shares_follow_the_weights_at_every_row(corpus: PackedCorpus, weights: dict[str, float] | None) -> None:
    batch = MixedStream(corpus, weights=weights, seed=0).take(500)
    expected = np.array([float((weights or corpus.weights)[name]) for name in corpus.source_names])
    expected /= expected.sum()
    counts = np.cumsum(batch["source_ids"][:, :1] == np.arange(3), axis=0)
    rows = np.arange(1, 501)[:, None]
    assert np.abs(counts - rows * expected).max() <= 2
    assert not counts[-1][expected == 0].any()


def test_weights_may_change_and_their_history_is_kept(corpus: PackedCorpus) -> None:
    stream = MixedStream(corpus, seed=0)
    stream.take(40)
    other = {"large": 0.0, "middle": 0.5, "small": 0.5}
    resumed = MixedStream(corpus, weights=other, seed=0, cursor=stream.cursor)
    stream.set_weights(other)
    stream.set_weights(other)
    after = rows_of(stream.take(40))
    assert after == rows_of(resumed.take(40))
    assert Counter(source for _, source, _ in after) == {1: 20, 2: 20}
    assert [mixture.sample_index for mixture in stream.cursor.history] == [0, 40]
    assert stream.cursor == resumed.cursor
    again = MixedStream(corpus, seed=0, cursor=stream.cursor)
    assert rows_of(again.take(9)) == rows_of(stream.take(9))


def test_what_weights_were_learned_from_is_kept_even_where_they_stay(corpus: PackedCorpus) -> None:
    stream = MixedStream(corpus, seed=0)
    stream.take(4)
    stream.set_weights(stream.weights)
    assert len(stream.cursor.history) == 1
    stream.set_weights(stream.weights, learned_from={"large": 1.5, "middle": 0.0, "small": -2.0})
    cursor = Cursor.model_validate_json(stream.cursor.model_dump_json())
    assert cursor.history[-1].learned_from == {"large": 1.5, "middle": 0.0, "small": -2.0}
    assert cursor == stream.cursor


def test_shares_over_five_million_tokens_are_within_a_fifth_of_a_percent(tmp_path: Path) -> None:
    """Of sources whose epochs last 3 to 400 rows; over the order alone, nothing is read."""
    weights = {"a": 0.25, "b": 0.35, "c": 0.1, "d": 0.15, "e": 0.149, "f": 0.001}
    corpus = write_corpus(tmp_path, dict(zip(weights, (200, 40, 3, 10, 1, 5), strict=True)), weights)
    stream = MixedStream(corpus, seed=0)
    switch = {"a": 0.6, "b": 0.0, "c": 0.1, "d": 0.1, "e": 0.1, "f": 0.1}
    for mixed, tokens in ((weights, 5_000_000), (switch, 500_000)):
        stream.set_weights(mixed)
        num_rows = tokens // SEQUENCE_LENGTH
        counts = Counter(source for source, _ in stream.advance(num_rows))
        assert all(abs(counts[name] / num_rows - weight) < 2e-4 for name, weight in mixed.items())
    epochs = {name: position.epoch for name, position in stream.cursor.sources.items()}
    assert epochs["e"] > 20 * epochs["a"] > 0


@pytest.mark.parametrize("num_rows", [1, 30, 200])
def test_peeked_rows_are_the_next_ones_of_their_source(corpus: PackedCorpus, num_rows: int) -> None:
    stream = MixedStream(corpus, seed=1)
    stream.take(37)
    peeked = stream.peek("small", num_rows)
    assert (peeked["sample_index"] == -1).all()
    before = stream.cursor
    served = stream.take(num_rows * 8)
    assert before == MixedStream(corpus, seed=1, cursor=before).cursor
    of_source = served["source_ids"][:, 0] == 2
    assert of_source.sum() >= num_rows
    assert np.array_equal(served["input_ids"][of_source][:num_rows], peeked["input_ids"])
    assert np.array_equal(served["targets"][of_source][:num_rows], peeked["targets"])


def test_a_kept_cursor_does_not_move(corpus: PackedCorpus) -> None:
    stream = MixedStream(corpus, seed=0)
    stream.take(3)
    kept = stream.cursor
    stream.take(3)
    assert kept.sample_index == 3 and stream.cursor.sample_index == 6


def test_heldout_rows_are_the_held_out_shard(corpus: PackedCorpus) -> None:
    batch = heldout(corpus, "middle", 4)
    rows = corpus.read_rows("middle", "heldout", range(4))
    assert np.array_equal(batch["input_ids"], rows.input_ids)
    assert np.array_equal(heldout(corpus, "middle", 2, start=2)["input_ids"], rows.input_ids[2:])
    assert (batch["source_ids"] == 1).all()
    with pytest.raises(ValueError, match="middle has .* heldout rows"):
        heldout(corpus, "middle", 1000)


def test_bad_weights_and_foreign_cursors_are_refused(corpus: PackedCorpus) -> None:
    with pytest.raises(ValueError, match="every weight is 0"):
        MixedStream(corpus, weights={"large": 0, "middle": 0, "small": 0}, seed=0)
    with pytest.raises(ValueError, match="must name each source"):
        MixedStream(corpus, weights={"large": 1, "middle": 1, "tiny": 1}, seed=0)
    with pytest.raises(ValueError, match="negative"):
        MixedStream(corpus, weights={"large": 1, "middle": -1, "small": 1}, seed=0)
    cursor = MixedStream(corpus, seed=0).cursor
    with pytest.raises(ValueError, match="seed 0, this one is of seed 1"):
        MixedStream(corpus, seed=1, cursor=cursor)
    with pytest.raises(ValueError, match="corpus"):
        MixedStream(corpus, seed=0, cursor=cursor.model_copy(update={"corpus": "0" * 64}))
