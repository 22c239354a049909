"""The teacher application: one full-precision model behind Ray Serve, asked for signals by any number of students.

A call is one micro-batch of packed rows in, one dictionary of numpy arrays out (see `wfray.teacher.signals`). A replica works
on one call at a time in a thread, so that its event loop stays free for health checks; calls beyond
`max_queued_requests` are refused, and a student keeps only a few in flight.
"""

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from actors.applications import find_application, start_serve
from wfray.config.teacher import TeacherConfig
from wfray.config.train import TeacherUse
from wfray.quant.determinism import use_deterministic_algorithms
from wfray.teacher import Fingerprint, SignalRequest, Signals, TransformersEngine, decode_signals

MAX_ATTEMPTS = 3


@serve.deployment
class Teacher:
    """One replica: an engine and its lock."""

    def __init__(self, directory: str, dtype: str, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        use_deterministic_algorithms()
        self.engine = TransformersEngine(Path(directory), dtype)  # type: ignore[arg-type]
        self.head_bits = self.engine.head()
        self.turn = asyncio.Lock()

    async def signals(self, batch: dict[str, np.ndarray], request: dict[str, Any]) -> dict[str, np.ndarray]:
        """Answer one micro-batch; see `TransformersEngine.signals`."""
        async with self.turn:
            return await asyncio.to_thread(self.engine.signals, batch, SignalRequest.model_validate(request))

    async def fingerprint(self) -> dict[str, Any]:
        """Who this teacher is."""
        return self.engine.fingerprint.model_dump()

    async def head(self) -> np.ndarray:
        """The LM head [V, C] as bfloat16 bits."""
        return self.head_bits


def deploy(config: TeacherConfig, directory: Path) -> None:
    """Deploy the application and wait until it answers; it outlives the job that deployed it."""
    start_serve()
    application = Teacher.options(  # type: ignore[attr-defined]
        num_replicas=config.num_replicas,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        max_ongoing_requests=4,
        max_queued_requests=config.max_queued_requests,
    ).bind(str(directory), config.dtype, config.threads)
    serve.run(application, name=config.application, route_prefix=None)


class PendingAnswer:
    """A call on its way; asked again when the replica that had it died."""

    def __init__(self, client: "TeacherClient", batch: dict[str, np.ndarray]) -> None:
        self.client, self.batch = client, batch
        self.response = client.send(batch)

    def result(self) -> Signals:
        """Wait for the answer.

        Raises:
            TimeoutError: none came within the configured time.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return decode_signals(self.response.result(timeout_s=self.client.use.timeout_seconds))
            except TimeoutError:
                raise TimeoutError(
                    f"teacher application {self.client.use.application!r} gave no answer in {self.client.use.timeout_seconds:.0f} s; "
                    "is it overloaded? Raise teacher.timeout_seconds or its num_replicas"
                ) from None
            except RayError:
                if attempt == MAX_ATTEMPTS:
                    raise
                self.response = self.client.send(self.batch)
        raise AssertionError("unreachable")


class TeacherClient:
    """A student's connection to the teacher application."""

    def __init__(self, use: TeacherUse, request: SignalRequest) -> None:
        mend = "Deploy it first: python -m jobs.teacher --config configs/teacher/<model>.yaml"
        self.use, self.wanted = use, request.model_dump()
        self.handle: DeploymentHandle = find_application(use.application, use.timeout_seconds, mend)

    def fingerprint(self) -> Fingerprint:
        """Who the teacher is."""
        return Fingerprint.model_validate(self.handle.fingerprint.remote().result(timeout_s=self.use.timeout_seconds))

    def head(self) -> torch.Tensor:
        """The teacher's LM head [V, C], bfloat16."""
        bits = self.handle.head.remote().result(timeout_s=self.use.timeout_seconds)
        return torch.from_numpy(np.array(bits)).view(torch.bfloat16)

    def send(self, batch: dict[str, np.ndarray]) -> DeploymentResponse:
        """Send one call without waiting."""
        return cast(DeploymentResponse, self.handle.signals.remote(batch, self.wanted))

    def request(self, batch: dict[str, np.ndarray]) -> PendingAnswer:
        """Ask for the signals of a micro-batch without waiting."""
        return PendingAnswer(self, batch)
