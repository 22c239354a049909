"""The cache of signals: what is found again, what is not, damage, eviction, several processes' views of one directory."""

import os
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from wfray.config.teacher import SignalCache
from wfray.teacher import SignalRequest, TransformersEngine
from wfray.teacher.cache import SignalStore
from wfray.teacher.meter import Meter
from wfray.teacher.rows import join_rows, take_rows

REQUEST = SignalRequest(wires=["hidden", "topk"], num_ids=6)
Batch = dict[str, np.ndarray]


def store(path: Path | str, max_gb: float = 1.0, teacher: str = "a") -> SignalStore:
    return SignalStore(SignalCache(path=str(path), max_gb=max_gb), teacher, Meter())


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_rows_are_found_again_however_they_are_batched(tmp_path: Path, engine: TransformersEngine, batch: Batch) -> None:
    answer = engine.signals(batch, REQUEST)
    store(tmp_path).write(batch, REQUEST, answer)
    second = store(tmp_path)
    turned = second.read(take_rows(batch, [1, 0]), REQUEST)
    found = join_rows([row for row in turned if row is not None])
    assert all(np.array_equal(found[name], take_rows(answer, [1, 0])[name]) for name in answer)
    assert second.meter.counts["cache_hits"] == 2 and second.num_bytes == sum(path.stat().st_size for path in files(tmp_path))


def test_one_wire_of_two_is_found_alone(tmp_path: Path, engine: TransformersEngine, batch: Batch) -> None:
    store(tmp_path).write(batch, REQUEST, engine.signals(batch, REQUEST))
    only_hidden = store(tmp_path).read(batch, SignalRequest(wires=["hidden"], seed=9, temperature=3.0))
    assert all(row is not None and set(row) == {"hidden"} for row in only_hidden)


@pytest.mark.parametrize(
    "changed", [{"num_ids": 7}, {"temperature": 2.0}, {"vocab_size": 90}, {"wires": ["hidden", "topk", "logits"]}, {"wires": ["sampled"]}]
)
def test_another_request_finds_nothing(tmp_path: Path, engine: TransformersEngine, batch: Batch, changed: dict) -> None:
    store(tmp_path).write(batch, REQUEST, engine.signals(batch, REQUEST))
    other = SignalRequest(**{**REQUEST.model_dump(), **changed})
    assert store(tmp_path).read(batch, other) == [None, None]


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "segment_ids"])
def test_other_rows_and_other_teachers_find_nothing(tmp_path: Path, engine: TransformersEngine, batch: Batch, name: str) -> None:
    store(tmp_path).write(batch, REQUEST, engine.signals(batch, REQUEST))
    other = {**batch, name: batch[name].copy()}
    other[name][0, 3] += 1
    rows = store(tmp_path).read(other, REQUEST)
    assert rows[0] is None and rows[1] is not None
    assert store(tmp_path, teacher="b").read(batch, REQUEST) == [None, None]


def test_a_damaged_entry_is_never_used(
    tmp_path: Path, engine: TransformersEngine, batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = engine.signals(batch, REQUEST)
    store(tmp_path).write(batch, REQUEST, answer)
    victim = files(tmp_path)[0]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)
    again = store(tmp_path)
    rows = again.read(batch, REQUEST)
    assert sum(row is None for row in rows) == 1 and again.meter.counts["cache_damaged"] == 1
    assert "is damaged" in capsys.readouterr().out and not victim.exists()
    again.write(batch, REQUEST, answer)
    assert all(row is not None for row in again.read(batch, REQUEST)) and again.meter.counts["cache_damaged"] == 1


def test_an_interrupted_write_is_no_entry(
    tmp_path: Path, engine: TransformersEngine, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wfray.teacher.cache.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path).write(batch, REQUEST, engine.signals(batch, REQUEST))
    assert store(tmp_path).read(batch, REQUEST) == [None, None]


def test_what_a_killed_replica_was_writing_is_removed(tmp_path: Path, engine: TransformersEngine, batch: Batch) -> None:
    kept = store(tmp_path, max_gb=1.0)
    kept.write(batch, REQUEST, engine.signals(batch, REQUEST))
    whole = files(tmp_path)
    for name, age in (("old", 3600), ("new", 0)):
        left = whole[0].with_name(f"{whole[0].name}.{name}")
        left.write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    store(tmp_path, max_gb=1.0)._evict()
    assert [path for path in files(tmp_path) if path not in whole] == [whole[0].with_name(f"{whole[0].name}.new")]


def test_the_limit_holds_and_the_least_recently_used_go_first(tmp_path: Path, engine: TransformersEngine, batch: Batch) -> None:
    request = SignalRequest(wires=["hidden"])
    kept = store(tmp_path, max_gb=6_000 / 2**30)
    for number in range(60):
        one = {**take_rows(batch, [0]), "input_ids": np.full((1, 12), number + 1, np.int32)}
        kept.write(one, request, engine.signals(one, request))
        for index, path in enumerate(files(tmp_path)):
            if path.stat().st_mtime > 1e6:
                os.utime(path, (number * 100 + index, number * 100 + index))
        first = {**one, "input_ids": np.full((1, 12), 1, np.int32)}
        assert kept.read(first, request) != [None], f"what is used all the time was evicted after {number + 1} rows"
    total = sum(path.stat().st_size for path in files(tmp_path))
    assert 0.8 * 6_000 < total <= 6_000 * 1.05 and kept.num_bytes <= 6_000 * 1.05
    second = {**one, "input_ids": np.full((1, 12), 2, np.int32)}
    assert kept.read(second, request) == [None] and kept.read(one, request) != [None]


def test_object_storage_serves_as_well(engine: TransformersEngine, batch: Batch) -> None:
    url = "memory://signals-of-a-test"
    answer = engine.signals(batch, REQUEST)
    store(url).write(batch, REQUEST, answer)
    rows = [row for row in store(url).read(batch, REQUEST) if row is not None]
    assert all(np.array_equal(join_rows(rows)[name], answer[name]) for name in answer)
    filesystem = fsspec.filesystem("memory")
    limited = store(url, max_gb=filesystem.du("/signals-of-a-test") / 2**30)
    other = {**batch, "input_ids": batch["input_ids"] + 1}
    limited.write(other, REQUEST, engine.signals(other, REQUEST))
    assert filesystem.du("/signals-of-a-test") <= limited.max_bytes


def test_a_file_system_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache.path 'no-such-thing://bucket' cannot be opened"):
        store("no-such-thing://bucket")
