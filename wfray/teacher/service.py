"""A teacher at work in one process: requests are checked, looked up, queued, computed, kept, and counted."""

import asyncio
from typing import Any

import numpy as np

from wfray.config.teacher import Wire
from wfray.teacher.cache import SignalStore
from wfray.teacher.engine import Engine
from wfray.teacher.meter import Meter
from wfray.teacher.queue import FairQueue
from wfray.teacher.rows import Arrays, join_rows, take_rows
from wfray.teacher.signals import SignalRequest, require_finite_arrays

PROBE_TOKENS = 8


class TeacherService:
    """An engine with its queue, its cache and its counts."""

    def __init__(self, engine: Engine, meter: Meter, batch_tokens: int | None = None, store: SignalStore | None = None) -> None:
        self.engine, self.meter, self.store = engine, meter, store
        self.queue = FairQueue(self._compute, meter, batch_tokens)

    def probe(self, wires: list[Wire]) -> None:
        """Give every wire once, so that what cannot be given is known before anybody counts on it.

        Raises:
            ValueError: the engine cannot give one of them, or gives values that are not finite.
        """
        ids = np.arange(1, PROBE_TOKENS + 1, dtype=np.int32)[None] % self.engine.fingerprint.vocab_size
        batch = {"input_ids": ids, "position_ids": np.arange(PROBE_TOKENS, dtype=np.int32)[None], "segment_ids": np.ones_like(ids)}
        request = SignalRequest(wires=wires, num_ids=1, qkv_layer=0)
        self.engine.fingerprint.check(request, PROBE_TOKENS)
        self._compute(batch, request)

    async def answer(self, client: str, batch: Arrays, request: SignalRequest) -> Arrays:
        """Answer one micro-batch; see `Engine.signals`.

        Args:
            client: who asks: those of one name share one share.
            batch: packed rows.
            request: what is wanted.

        Raises:
            ValueError: the teacher cannot answer this, or its answer is not finite.
        """
        self.engine.fingerprint.check(request, batch["input_ids"].shape[1])
        self.engine.fingerprint.check_tokens(batch["input_ids"])
        answer = await (self._look_up if self.store else self.queue.answer)(client, batch, request)
        self.meter.answered(client, int(batch["input_ids"].size))
        return answer

    async def _look_up(self, client: str, batch: Arrays, request: SignalRequest) -> Arrays:
        """Rows that are kept are read, the others computed and kept."""
        assert self.store is not None
        rows = await asyncio.to_thread(self.store.read, batch, request)
        missing = [index for index, row in enumerate(rows) if row is None]
        if missing:
            asked = take_rows(batch, missing)
            answer = await self.queue.answer(client, asked, request)
            await asyncio.to_thread(self.store.write, asked, request, answer)
            for position, index in enumerate(missing):
                rows[index] = take_rows(answer, [position])
        return join_rows([row for row in rows if row is not None])

    def _compute(self, batch: Arrays, request: SignalRequest) -> Arrays:
        answer = self.engine.signals(batch, request)
        require_finite_arrays(answer)
        return answer

    def status(self) -> dict[str, Any]:
        """Who the teacher is, what waits, what was done."""
        return {
            "fingerprint": self.engine.fingerprint.model_dump(),
            "digest": self.engine.fingerprint.digest,
            "queue": len(self.queue),
            "cache_bytes": self.store.num_bytes if self.store else 0,
            **self.meter.figures(),
        }

    def close(self) -> None:
        """Wait for what is being computed, then free the model."""
        self.queue.close()
        self.engine.close()
