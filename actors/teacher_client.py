"""A student's connection to the teacher application: it asks ahead, waits, and asks again what got lost.

Asking again is safe, since equal requests have equal answers. It ends at `timeout_seconds` of waiting for one answer, whatever went
wrong meanwhile: a replica that died, an application that was deleted or is being replaced, callers who are told to wait.
What a teacher refuses (`ValueError` in the replica) is raised here as itself, at once.
"""

import time
from typing import Any

import numpy as np
import torch
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from actors.applications import find_application, is_deployed
from wfray.config.train import TeacherUse
from wfray.teacher import EngineGone, Fingerprint, SignalRequest, Signals, decode_signals

DEPLOY = "Deploy it: ray job submit --working-dir . -- python -m jobs.teacher --config configs/teacher/<model>.yaml"
LOOK_SECONDS = 3.0
"""After this long without an answer it is looked whether the application is still there."""
PAUSE_SECONDS = 0.2
"""Between attempts."""


class PendingCall:
    """A call on its way."""

    def __init__(self, client: "TeacherClient", method: str, *arguments: Any) -> None:
        self.client, self.method, self.arguments = client, method, arguments
        self.response = self._send()

    def wait(self) -> Any:
        """The answer.

        Raises:
            ValueError: the teacher refused, is not there, or gave no answer in time.
        """
        deadline = time.monotonic() + self.client.use.timeout_seconds
        reason = "is it overloaded? Raise teacher.timeout_seconds or its num_replicas"
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self.response.result(timeout_s=min(left, LOOK_SECONDS))
            except TimeoutError:
                if is_deployed(self.client.use.application):
                    continue
            except RayTaskError as error:
                if not isinstance(error.cause, EngineGone):
                    raise (error.cause if isinstance(error.cause, ValueError) else error) from None
                reason = f"{error.cause}; see its log in the dashboard"
            except BackPressureError:
                reason = "it is overloaded: raise teacher.timeout_seconds, or its num_replicas or max_queued_requests"
            except (RayError, RayServeException) as error:
                reason = f"replicas were lost: {type(error).__name__}; see its log in the dashboard"
            time.sleep(PAUSE_SECONDS)
            self.client.find(max(0.0, deadline - time.monotonic()))
            self.response = self._send()
        self.client.find(0.0)
        use = self.client.use
        raise ValueError(f"teacher application {use.application!r} gave no answer in {use.timeout_seconds:.0f} s; {reason}")

    def _send(self) -> DeploymentResponse:
        return getattr(self.client.handle, self.method).remote(*self.arguments)


class PendingAnswer:
    """Signals on their way."""

    def __init__(self, client: "TeacherClient", batch: dict[str, np.ndarray]) -> None:
        self.client = client
        self.call = PendingCall(client, "signals", client.name, batch, client.wanted.model_dump())

    def result(self) -> Signals:
        """Wait for the signals.

        Raises:
            ValueError: see `PendingCall.wait`; they are not finite; they are another teacher's.
        """
        answer = self.call.wait()
        self.client.num_unread -= 1
        self.client.require_same(answer["teacher"])
        return decode_signals(answer["arrays"])


class TeacherClient:
    """A student's connection."""

    def __init__(self, use: TeacherUse, request: SignalRequest, name: str) -> None:
        """Find the application.

        Args:
            use: which, and how long to wait for it.
            request: what is wanted of every batch.
            name: the student's; all its workers have one name, and so one share of the teacher's time.

        Raises:
            ValueError: it is not there in time, or cannot give what is wanted.
        """
        self.use, self.wanted, self.name, self.num_unread = use, request, name, 0
        self.handle: DeploymentHandle
        self.find(use.timeout_seconds)
        self.fingerprint = self._ask_who()
        self.fingerprint.check(request)

    def find(self, timeout_seconds: float) -> None:
        """Connect to the application as it is deployed now; raises `ValueError` naming it where it is not."""
        self.handle = find_application(self.use.application, timeout_seconds, DEPLOY, said=self.use.timeout_seconds)

    def head(self) -> torch.Tensor:
        """The teacher's LM head [V, C], bfloat16, of the part of the vocabulary that is wanted."""
        bits = PendingCall(self, "head").wait()
        return torch.from_numpy(np.array(bits)).view(torch.bfloat16)[: self.wanted.vocab_size]

    def request(self, batch: dict[str, np.ndarray]) -> PendingAnswer:
        """Ask for the signals of a micro-batch without waiting.

        Raises:
            ValueError: the rows are too long for the teacher, or `in_flight` answers are unread, which are kept in memory.
        """
        self.fingerprint.check(self.wanted, batch["input_ids"].shape[1])
        if self.num_unread >= self.use.in_flight:
            raise ValueError(f"{self.num_unread} answers of the teacher are unread: read one first, or raise teacher.in_flight")
        self.num_unread += 1
        return PendingAnswer(self, batch)

    def require_same(self, digest: str) -> None:
        """Raise `ValueError` when an answer came from another teacher than the one that this student began with."""
        if digest != self.fingerprint.digest:
            raise ValueError(
                f"teacher application {self.use.application!r} was deployed again with another teacher while this job ran "
                f"({self.fingerprint.differences(self._ask_who())}): deploy the first one again and start this job again, it goes on from "
                "its newest checkpoint; or train anew in another run directory"
            )

    def _ask_who(self) -> Fingerprint:
        return Fingerprint.model_validate(PendingCall(self, "fingerprint").wait())
