"""Workers that consume a packed corpus as a student's do, through the real `Feed`, and a supervisor that kills them with SIGKILL.

A worker writes down the rows of its part of each step; when all workers have, rank 0 commits the step by renaming a new state file into
place: step, cursor, and whose notes count. That is what a checkpoint is to a student. A new group, of any size, goes on from the
newest commit; notes of steps that were not committed are as lost as the updates of a dead student. So the committed notes are what
the student learned from. The processes are forked, which is safe because they compute nothing with torch's threads, and fast.
"""

import hashlib
import multiprocessing as mp
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from wfray.data.batch import PackedBatch, make_batch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import Cursor, MixedStream
from wfray.runs import write_aside
from wfray.train import Feed, StepPlan

CONTEXT = mp.get_context("fork")


class Commit(BaseModel):
    """The state of a consumption."""

    cursor: Cursor
    notes: list[tuple[int, int]]
    """Of each step: the attempt whose notes count, and its number of workers."""


@dataclass(frozen=True)
class Job:
    """What is consumed, and where it is written down."""

    corpus: Path
    directory: Path
    rows: int
    """Of a step; a multiple of every number of workers x 2."""
    num_steps: int
    seed: int

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    def notes(self, step: int, attempt: int, rank: int) -> Path:
        return self.directory / "notes" / f"{step}-{attempt}-{rank}"

    def commit(self) -> Commit | None:
        """The newest commit."""
        return Commit.model_validate_json(self.state.read_text(encoding="utf-8")) if self.state.exists() else None


ROOM = 2
"""Steps after the one at which a kill is due; there the group waits for it, so that it never outruns a supervisor without a core."""


def work(job: Job, attempt: int, rank: int, world_size: int, barrier: Any, steps_done: Any, halt: int) -> None:
    """One worker: consume to the end of the job, or up to step `halt`, where it is killed."""
    commit = job.commit()
    cursor, notes = (commit.cursor, commit.notes) if commit else (None, [])
    stream = open_stream(job, cursor)
    plan = StepPlan(job.rows, job.rows // world_size // 2, job.num_steps, len(notes), in_flight=3)
    rows: list[str] = []
    for micro in Feed(stream, plan, None, rank, world_size):
        while micro.step == halt:
            time.sleep(1)
        rows += [fingerprint(*row) for row in zip(micro.batch["input_ids"].numpy(), micro.batch["targets"].numpy(), strict=True)]
        if not micro.is_last:
            continue
        with write_aside(job.notes(micro.step, attempt, rank)) as aside:
            aside.write_text("\n".join(rows), encoding="utf-8")
        barrier.wait()
        if rank == 0:
            notes.append((attempt, world_size))
            with write_aside(job.state) as aside:
                aside.write_text(Commit(cursor=micro.cursor, notes=notes).model_dump_json(), encoding="utf-8")
            steps_done.value = len(notes)
        barrier.wait()
        rows = []


def open_stream(job: Job, cursor: Cursor | None = None) -> MixedStream:
    """Sources in proportion to their rows, so that the epochs of all of them end at the same row."""
    corpus = PackedCorpus(job.corpus)
    weights = {name: float(corpus.split(name, "train").num_rows) for name in corpus.source_names}
    return MixedStream(corpus, weights=None if cursor else weights, seed=job.seed, cursor=cursor)


def fingerprint(*arrays: Any) -> str:
    """A hash of one row."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:24]


def consume(job: Job, world_sizes: list[int], num_kills: int, seed: int) -> int:
    """Consume to the end, killing the group at random moments, each time followed by one of a random size.

    Returns:
        How many groups were killed; fewer than `num_kills` where the end came first.
    """
    chance, kills = random.Random(seed), 0
    for attempt in range(num_kills + 1):
        commit = job.commit()
        done = len(commit.notes) if commit else 0
        left = None if kills == num_kills else chance.uniform(0, 1.5 * (job.num_steps - done) / (num_kills - kills))
        if run_group(job, attempt, chance.choice(world_sizes), left, chance):
            return kills
        kills += 1
    raise AssertionError("the last group is not killed")


def run_group(job: Job, attempt: int, world_size: int, steps_left: float | None, chance: random.Random) -> bool:
    """Run one group; kill it about `steps_left` steps from now. Whether it came to its end."""
    commit = job.commit()
    done = len(commit.notes) if commit else 0
    due = job.num_steps if steps_left is None else done + int(steps_left)
    barrier, steps_done = CONTEXT.Barrier(world_size), CONTEXT.Value("q", done)
    shared = (world_size, barrier, steps_done, due + ROOM)
    workers = [CONTEXT.Process(target=work, args=(job, attempt, rank, *shared)) for rank in range(world_size)]
    for worker in workers:
        worker.start()
    if steps_left is not None:
        while steps_done.value < due and any(worker.is_alive() for worker in workers):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.003))
        for worker in chance.sample(workers, world_size):
            worker.kill()
    for worker in workers:
        worker.join()
    return all(worker.exitcode == 0 for worker in workers)


def consumed(job: Job) -> Iterator[str]:
    """The rows of all committed steps, in order."""
    commit = job.commit()
    for step, (attempt, world_size) in enumerate(commit.notes if commit else []):
        for rank in range(world_size):
            yield from job.notes(step, attempt, rank).read_text(encoding="utf-8").splitlines()


def uninterrupted(job: Job) -> list[str]:
    """The rows that one worker consumes when nothing happens."""
    return fingerprints(open_stream(job).take(job.rows * job.num_steps))


def fingerprints(batch: PackedBatch) -> list[str]:
    """The hash of each row of a batch."""
    return [fingerprint(*row) for row in zip(batch["input_ids"], batch["targets"], strict=True)]


@dataclass(frozen=True)
class Faults:
    """What went wrong with the rows of an epoch."""

    lost: int
    doubled: int
    misplaced: int

    @property
    def total(self) -> int:
        return self.lost + self.doubled + self.misplaced


def faults(job: Job) -> Faults:
    """Compare what was consumed with the packed rows of one epoch, and with the order of an uninterrupted run."""
    found, wanted, packed = list(consumed(job)), uninterrupted(job), packed_rows(job.corpus)
    once = Counter(found[: packed.total()])
    misplaced = sum(a != b for a, b in zip(found, wanted, strict=False)) + abs(len(found) - len(wanted))
    return Faults(lost=(packed - once).total(), doubled=(once - packed).total(), misplaced=misplaced)


def packed_rows(directory: Path) -> Counter[str]:
    """The training rows of all sources, as they were packed."""
    corpus, found = PackedCorpus(directory), Counter[str]()
    for name in corpus.source_names:
        numbers = np.arange(corpus.split(name, "train").num_rows)
        rows = corpus.read_rows(name, "train", numbers.tolist())
        found.update(fingerprints(make_batch(rows.input_ids, rows.segment_ids, np.zeros(len(numbers), np.int16), numbers, rows.marks)))
    return found
