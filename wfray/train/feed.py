"""What the student eats: micro-batches in the stream's order, their teacher signals asked for ahead of time.

The global batch of a step is defined first, `batch_tokens / sequence length` rows of the stream; worker r of w takes its
contiguous w-th part and cuts it into micro-batches. So the order of rows, and with it the losses, depends neither on who answers a
request nor on when. Each step carries the stream's cursor after it, which goes into the checkpoint: rows that were only
prefetched are not consumed. Where a mixer may change the stream's weights nothing is prefetched, so that the change comes at the
same row however many requests are in flight.

Signals are attached by the student's own prefetcher rather than by a Ray Data stage: order and position stay in one
place, and the requests in flight are bounded by a number instead of by blocks.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from wfray.data.batch import PackedBatch
from wfray.data.stream import Cursor, MixedStream
from wfray.objectives import Totals
from wfray.teacher.signals import Signals

T = TypeVar("T")


class PendingSignals(Protocol):
    """An answer on its way."""

    def result(self) -> Signals:
        """Wait for the signals."""
        ...


class SignalSource(Protocol):
    """Where signals come from: the teacher application, a cache, a model in this process."""

    def request(self, batch: dict[str, np.ndarray]) -> PendingSignals:
        """Ask for the signals of a micro-batch; must not wait."""
        ...


class Mixer(Protocol):
    """Changes the weights of the stream between steps."""

    def acts_before(self, step: int) -> bool:
        """Whether it may change them before the first row of `step` is drawn."""
        ...

    def act(self, step: int, stream: MixedStream) -> None:
        """Change them; every step before `step` has been trained on."""
        ...


@dataclass(frozen=True)
class StepPlan:
    """Sizes of one optimizer step."""

    rows: int
    """Rows of the global batch."""
    micro_rows: int
    num_steps: int
    first_step: int
    in_flight: int

    def check(self, world_size: int) -> None:
        """Raise `ValueError` when the batch does not divide over the workers and micro-batches."""
        if self.rows < 1 or self.rows % (world_size * self.micro_rows):
            raise ValueError(
                f"a step of {self.rows} rows does not divide into micro-batches of {self.micro_rows} rows on {world_size} workers: "
                "make train.batch_tokens a multiple of train.micro_rows x sequence length x train.num_workers"
            )


@dataclass
class MicroBatch:
    """One forward pass of one worker."""

    step: int
    batch: dict[str, Tensor]
    signals: Signals
    totals: Totals
    """Of the whole global batch."""
    is_last: bool
    """Whether the step ends with it."""
    cursor: Cursor
    """The stream's position after this step."""


class Feed:
    """Iterates over the micro-batches of one worker from `plan.first_step` to the end of the stage."""

    def __init__(
        self,
        stream: MixedStream,
        plan: StepPlan,
        source: SignalSource | None,
        rank: int,
        world_size: int,
        mixer: Mixer | None = None,
        count_related: Callable[[dict[str, Tensor]], int] | None = None,
    ) -> None:
        """A feed at the beginning of `plan`.

        Args:
            stream: what is taken.
            plan: the steps.
            source: of the teacher's signals, where there is one.
            rank, world_size: which worker this is.
            mixer: changes the stream's weights.
            count_related: of a packed batch, the tokens that attention relations are taken of; None where no objective asks.
        """
        plan.check(world_size)
        self.stream, self.plan, self.source, self.mixer, self.count_related = stream, plan, source, mixer, count_related
        self.rank, self.world_size = rank, world_size
        self.data_seconds = 0.0
        self.teacher_seconds = 0.0
        self.mixing_seconds = 0.0
        self._ahead: deque[tuple[MicroBatch, PendingSignals | None]] = deque()

    def __iter__(self) -> Iterator[MicroBatch]:
        coming = self._plan_micro_batches()
        while True:
            self._fill(coming)
            if not self._ahead:
                return
            micro, pending = self._ahead.popleft()
            if pending is not None:
                started = time.perf_counter()
                micro.signals = pending.result()
                self.teacher_seconds += time.perf_counter() - started
            yield micro

    def _fill(self, coming: Iterator[MicroBatch | None]) -> None:
        started, mixed = time.perf_counter(), self.mixing_seconds
        while len(self._ahead) < max(1, self.plan.in_flight) and (micro := next(coming, None)) is not None:
            arrays = {name: micro.batch[name].numpy() for name in ("input_ids", "position_ids", "segment_ids")}
            self._ahead.append((micro, self.source.request(arrays) if self.source else None))
        self.data_seconds += time.perf_counter() - started - (self.mixing_seconds - mixed)

    def _plan_micro_batches(self) -> Iterator[MicroBatch | None]:
        """The micro-batches in order; None while the next one must wait for those ahead to be trained on."""
        for step in range(self.plan.first_step, self.plan.num_steps):
            if self.mixer and self.mixer.acts_before(step):
                while self._ahead:
                    yield None
                self._mix(self.mixer, step)
            global_batch = self.stream.take(self.plan.rows)
            totals = self._totals(global_batch)
            cursor = self.stream.cursor
            share = self.plan.rows // self.world_size
            start, end = self.rank * share, (self.rank + 1) * share
            for first in range(start, end, self.plan.micro_rows):
                rows = slice(first, first + self.plan.micro_rows)
                is_last = first + self.plan.micro_rows == end
                yield MicroBatch(step, as_tensors(global_batch, rows), {}, totals, is_last, cursor)

    def _totals(self, batch: PackedBatch) -> Totals:
        related = self.count_related(as_tensors(batch, slice(None))) if self.count_related else None
        return Totals(int((batch["targets"] != -100).sum()), related)

    def _mix(self, mixer: Mixer, step: int) -> None:
        started = time.perf_counter()
        mixer.act(step, self.stream)
        self.mixing_seconds += time.perf_counter() - started


def as_tensors(batch: PackedBatch, rows: slice) -> dict[str, Tensor]:
    """Some rows of a packed batch as tensors."""
    names = ("input_ids", "targets", "position_ids", "segment_ids", "sample_index")
    return {name: torch.from_numpy(np.ascontiguousarray(batch[name][rows])) for name in names}  # type: ignore[literal-required]


def on_device(value: T, device: torch.device) -> T:
    """The same with every tensor in it on `device`: dicts, tuples and dataclasses of tensors, as batches and signals are."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif isinstance(value, dict):
        moved = {key: on_device(item, device) for key, item in value.items()}
    elif isinstance(value, tuple):
        moved = tuple(on_device(item, device) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{entry.name: on_device(getattr(value, entry.name), device) for entry in fields(value)})
    return moved
