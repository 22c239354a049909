"""What the benchmarks of the teacher share: SmolLM2-135M as a deployed teacher, packed rows of real text, a student's step."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import ray
import torch

from actors.teacher import deploy, status_of, take_down
from actors.teacher_client import TeacherClient
from benchmarks.inputs import CACHE, ROOT, make_student, quickstart_corpus
from wfray.config.objectives import Objective
from wfray.config.teacher import TeacherConfig
from wfray.config.train import TeacherUse
from wfray.data.batch import PackedBatch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.objectives import StageLoss, Totals, num_related
from wfray.quant import hold_codes, release_codes
from wfray.runs.children import free_port
from wfray.student import load_student, materialize, run_body
from wfray.student.forward import lm_head_weight
from wfray.teacher import SignalRequest, Signals
from wfray.train.feed import as_tensors

CONFIG = ROOT / "configs" / "teacher" / "smollm2_135m.yaml"
APPLICATION = "benchmark"
LENGTH = 512
TEACHER_ARRAYS = ("input_ids", "position_ids", "segment_ids")


def config(*overrides: str) -> TeacherConfig:
    """SmolLM2-135M as its configuration file has it, with changes."""
    return TeacherConfig.load(CONFIG, [f"application={APPLICATION}", *overrides])


def model() -> Path:
    """Its directory."""
    return materialize(config().model, CACHE / "models")


def rows(num_rows: int, seed: int = 0) -> PackedBatch:
    """Rows of the quickstart's corpus in a student's order."""
    return MixedStream(PackedCorpus(quickstart_corpus(f"sequence_length={LENGTH}")), seed=seed).take(num_rows)


def part(batch: PackedBatch, first: int, num_rows: int) -> dict[str, np.ndarray]:
    """Some rows as a teacher is asked for them."""
    return {name: batch[name][first : first + num_rows] for name in TEACHER_ARRAYS}  # type: ignore[literal-required]


@contextmanager
def deployed(*overrides: str) -> Iterator[None]:
    """A Ray of this process's own with the teacher on it."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "WFRAY_HTTP_PORT": str(free_port())}
    resources = {"teacher": 1}
    options = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address="local", num_cpus=2, object_store_memory=1_000_000_000, resources=resources, **options)
    deploy(config(*overrides), model())
    yield
    take_down(APPLICATION)
    ray.shutdown()


def client(request: SignalRequest, name: str = "student", in_flight: int = 2) -> TeacherClient:
    """A connection to it."""
    return TeacherClient(TeacherUse(application=APPLICATION, in_flight=in_flight, timeout_seconds=600), request, name)


def pin_all_but_this_thread(core: int) -> None:
    """Put every process of this Ray, and the threads that Ray has in this process, on one core; this thread goes to the other one."""
    this = threading.get_native_id()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for thread in process.threads():
            if thread.id != this:
                os.sched_setaffinity(thread.id, {core})
    os.sched_setaffinity(this, {1 - core})


@dataclass
class Step:
    """A ternary SmolLM2-135M that takes optimizer steps on one micro-batch of the quickstart's text, on one thread."""

    objectives: list[Objective]
    head_VC: torch.Tensor
    num_rows: int

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.student = load_student(make_student(config().model)).train()
        self.loss = StageLoss(self.objectives, self.head_VC, torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, fused=True)

    def take(self, batch: PackedBatch, first: int, signals: Signals) -> None:
        """Forward, backward, update."""
        tensors = as_tensors(batch, slice(first, first + self.num_rows))
        hold_codes(self.student)
        with torch.autocast("cpu", torch.bfloat16):
            output = run_body(self.student, tensors, with_layers=self.loss.needs_layers, qkv_layer=self.loss.qkv_layer)
            totals = Totals(int((tensors["targets"] != -100).sum()), num_related(output.segments))
            loss, _ = self.loss(output, lm_head_weight(self.student), tensors, signals, totals, 0.5)
        loss.backward()
        release_codes(self.student)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass
class Turns:
    """The same steps with a live teacher, asked ahead, and with signals that are in memory already, in turns."""

    step: Step
    asking: TeacherClient
    batch: PackedBatch
    skipped: int
    """First steps of a turn that are not counted: what the other turn left under way is over by then."""
    counted: int

    def run(self, num_turns: int) -> tuple[dict[str, list[float]], float]:
        """Seconds of every counted step of both sides, and the fraction of the live ones that was spent waiting."""
        seconds: dict[str, list[float]] = {"live": [], "memory": []}
        waited = 0.0
        for _ in range(num_turns):
            live, wait, signals = self._live()
            seconds["live"] += live
            waited += wait
            seconds["memory"] += self._memory(signals)
        return seconds, waited / sum(seconds["live"])

    def _live(self) -> tuple[list[float], float, Signals]:
        """One turn: as a student's feed does it, `in_flight` requests ahead."""
        firsts = [self.step.num_rows * index for index in range(self.skipped + self.counted)]
        ahead = [self.asking.request(part(self.batch, first, self.step.num_rows)) for first in firsts[: self.asking.use.in_flight]]
        seconds, waits = [], []
        for index, first in enumerate(firsts):
            started = time.perf_counter()
            signals = ahead.pop(0).result()
            waits.append(time.perf_counter() - started)
            if (following := index + self.asking.use.in_flight) < len(firsts):
                ahead.append(self.asking.request(part(self.batch, firsts[following], self.step.num_rows)))
            self.step.take(self.batch, first, signals)
            seconds.append(time.perf_counter() - started)
        return seconds[self.skipped :], sum(waits[self.skipped :]), signals

    def _memory(self, signals: Signals) -> list[float]:
        """One turn: the last rows' signals for all rows, which cost the same whatever they say."""
        seconds = []
        for index in range(self.skipped + self.counted):
            started = time.perf_counter()
            self.step.take(self.batch, self.step.num_rows * index, signals)
            seconds.append(time.perf_counter() - started)
        return seconds[self.skipped :]


def passes() -> int:
    """Forward passes of all replicas."""
    return sum(replica["passes"] for replica in status_of(APPLICATION))
