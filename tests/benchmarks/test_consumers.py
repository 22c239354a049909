"""Kill anything at any time: real workers over the real feed, killed with SIGKILL, at 1, 2 and 4 workers and changing numbers."""

import json
from pathlib import Path

import pytest

from benchmarks.consumers import Faults, Job, consume, consumed, faults, packed_rows, uninterrupted
from tests.wfray.data.conftest import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 rows of three sources, one of them small."""
    directory = tmp_path_factory.mktemp("corpus")
    write_corpus(directory, {"large": 120, "middle": 60, "small": 7}, {"large": 1, "middle": 1, "small": 1})
    return directory


def job_of(corpus: Path, directory: Path) -> Job:
    rows = 16
    return Job(corpus, directory, rows, -(-packed_rows(corpus).total() // rows), seed=5)


@pytest.mark.parametrize("world_sizes", [[1], [2], [4], [1, 2, 4]], ids=str)
def test_every_packed_row_is_consumed_once_and_in_order_whatever_is_killed(corpus: Path, tmp_path: Path, world_sizes: list[int]) -> None:
    job = job_of(corpus, tmp_path)
    assert consume(job, world_sizes, num_kills=6, seed=sum(world_sizes)) >= 1
    assert faults(job) == Faults(0, 0, 0)
    commit = job.commit()
    assert commit is not None
    assert {world_size for _, world_size in commit.notes} <= set(world_sizes)
    assert len({attempt for attempt, _ in commit.notes}) > 1


def test_faults_are_counted(corpus: Path, tmp_path: Path) -> None:
    job = job_of(corpus, tmp_path)
    consume(job, [1], num_kills=0, seed=0)
    assert list(consumed(job)) == uninterrupted(job)
    notes = job.notes(3, 0, 0)
    lines = notes.read_text(encoding="utf-8").splitlines()
    notes.write_text("\n".join([lines[1], lines[0], *lines[2:15], lines[2]]), encoding="utf-8")
    assert faults(job) == Faults(lost=1, doubled=1, misplaced=3)
    state = json.loads(job.state.read_text(encoding="utf-8"))
    job.state.write_text(json.dumps({**state, "notes": state["notes"][:-2]}), encoding="utf-8")
    assert faults(job).lost > 16
