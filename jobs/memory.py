"""Peak resident memory of process trees, sampled from outside.

A sample is the sum of proportional set sizes (PSS): memory that several processes map, like Ray's object store or a library,
counts once in all, not once a process. The kernel walks the page tables for it, about 10 ms for each resident GB and 1 ms a
process. So it is asked only where there can be a new peak, which is where the plain sum of resident sizes, cheap and never less, is above
the last one; and after an answer that took a while not again for twenty times as long. Peaks shorter than that, or than the interval
of two seconds, may be missed.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

INTERVAL_SECONDS = 2.0
PAUSE = 20
"""How many times as long as an answer took none is asked for."""


class ResidentMemory:
    """Samples, in a thread, the memory of all processes below some roots; use as a context manager and read `peak_bytes`."""

    def __init__(self, roots: list[int], interval_seconds: float = INTERVAL_SECONDS) -> None:
        """Watch the trees of processes whose root pids are `roots`; daemons that left their parent must be named as roots."""
        self.peak_bytes = 0
        self._roots = set(roots)
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resident-memory", daemon=True)

    def add_root(self, pid: int) -> None:
        """Watch one more tree from the next sample on."""
        self._roots = self._roots | {pid}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        next_answer = 0.0
        while True:
            processes = tree(self._roots)
            mapped, began = total(processes, lambda process: process.memory_info().rss), time.monotonic()
            if mapped > self.peak_bytes and began >= next_answer:
                self.peak_bytes = max(self.peak_bytes, total(processes, proportional_bytes))
                next_answer = time.monotonic() + PAUSE * (time.monotonic() - began)
            if self._stop.wait(self._interval):
                return


def resident_bytes(roots: set[int]) -> int:
    """Bytes resident now in the trees of `roots`, shared pages counted once; processes that are gone count nothing."""
    return total(tree(roots), proportional_bytes)


def tree(roots: set[int]) -> set[psutil.Process]:
    """The living processes of `roots` and all below them."""
    processes: set[psutil.Process] = set()
    for pid in roots:
        try:
            root = psutil.Process(pid)
            processes |= {root, *root.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return processes


def total(processes: set[psutil.Process], measure: Callable[[psutil.Process], int]) -> int:
    """The sum over all processes, 0 for one that has ended or belongs to someone else."""
    num_bytes = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            num_bytes += measure(process)
    return num_bytes


def proportional_bytes(process: psutil.Process) -> int:
    """The proportional set size of one process."""
    return int(process.memory_full_info().pss)
