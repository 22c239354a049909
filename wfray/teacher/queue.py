"""The queue in front of an engine: one pass at a time in a thread of its own, and every student gets its share of the tokens.

Whose turn it is is start-time fair queueing (Goyal et al. 1996) with tokens as the service: each client has a clock that runs by
the tokens computed for it, the one that is furthest behind goes next, and one that comes back after a pause starts at the present,
so that pauses earn no credit. However many requests a client has waiting, those who wait get equal shares.

With `batch_tokens` requests that wait and want the same share a pass of up to so many tokens, in the same order, and longer ones are
cut into passes of whole rows. That is faster on GPUs with small micro-batches; the last bits of an answer may then depend on what
it shared the pass with. Without it one request is one pass.

The loop that accepts requests is never blocked, and there is nothing to be bounded here: whoever calls `answer` bounds the callers.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wfray.teacher.meter import Meter
from wfray.teacher.rows import Arrays, join_rows, take_rows
from wfray.teacher.signals import SignalRequest

Compute = Callable[[Arrays, SignalRequest], Arrays]


@dataclass
class Job:
    """One request that waits for its pass."""

    client: str
    batch: Arrays
    request: SignalRequest
    answer: asyncio.Future[Arrays]

    @property
    def num_tokens(self) -> int:
        """Positions, padding included."""
        return int(self.batch["input_ids"].size)

    def fits(self, other: "Job") -> bool:
        """Whether both can share a pass."""
        same_length = self.batch["input_ids"].shape[1] == other.batch["input_ids"].shape[1]
        return same_length and self.request == other.request


class FairQueue:
    """Answers requests in turn."""

    def __init__(self, compute: Compute, meter: Meter, batch_tokens: int | None = None) -> None:
        """`compute` answers one batch and is called from one thread only."""
        self.compute, self.meter, self.batch_tokens = compute, meter, batch_tokens
        self.waiting: dict[str, deque[Job]] = {}
        self.clocks: dict[str, float] = {}
        self.now = 0.0
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self.worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    async def answer(self, client: str, batch: Arrays, request: SignalRequest) -> Arrays:
        """Wait for this request's turn and its answer; a caller that is cancelled gives up its place."""
        job = Job(client, batch, request, asyncio.get_running_loop().create_future())
        if client not in self.waiting:
            self.waiting[client] = deque()
            self.clocks[client] = max(self.clocks.get(client, 0.0), self.now)
        self.waiting[client].append(job)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await job.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while jobs := self._next_pass():
            answers: Sequence[Arrays | Exception]
            try:
                answers = await loop.run_in_executor(self.thread, self._run, jobs)
            except Exception as error:  # It belongs to those who asked, whatever it is.
                answers = [error] * len(jobs)
            for job, answer in zip(jobs, answers, strict=True):
                if job.answer.cancelled():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)

    def _next_pass(self) -> list[Job]:
        """The jobs of the next pass: the next in turn, and those after it that fit into the same."""
        jobs: list[Job] = []
        room = float(self.batch_tokens or 0)
        while (client := self._next_client()) is not None:
            job = self.waiting[client][0]
            if jobs and not (job.num_tokens <= room and job.fits(jobs[0])):
                break
            jobs.append(self._take(client))
            room -= job.num_tokens
        return jobs

    def _next_client(self) -> str | None:
        """The client furthest behind among those with a job that is still wanted."""
        for client, jobs in list(self.waiting.items()):
            while jobs and jobs[0].answer.cancelled():
                jobs.popleft()
            if not jobs:
                del self.waiting[client]
        if not self.waiting:
            self.clocks = {client: clock for client, clock in self.clocks.items() if clock > self.now}
            return None
        return min(self.waiting, key=lambda client: self.clocks[client])

    def _take(self, client: str) -> Job:
        job = self.waiting[client].popleft()
        if not self.waiting[client]:
            del self.waiting[client]
        self.now = self.clocks[client]
        self.clocks[client] += job.num_tokens
        return job

    def _run(self, jobs: list[Job]) -> list[Arrays]:
        """The passes of these jobs; in the engine's thread."""
        batch, request = join_rows([job.batch for job in jobs]), jobs[0].request
        num_rows, length = batch["input_ids"].shape
        most = max(1, self.batch_tokens // length) if self.batch_tokens else num_rows
        with self.meter.passing(-(-num_rows // most), int(batch["input_ids"].size)):
            parts = [self.compute(take_rows(batch, slice(first, first + most)), request) for first in range(0, num_rows, most)]
        together = join_rows(parts)
        ends = np.cumsum([len(job.batch["input_ids"]) for job in jobs])
        return [take_rows(together, slice(end - len(job.batch["input_ids"]), end)) for job, end in zip(jobs, ends, strict=True)]

    def close(self) -> None:
        """Wait for the pass that runs, then end the thread."""
        self.thread.shutdown(wait=True)
