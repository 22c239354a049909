"""An engine that is a server of its own: vllm or sglang, each in the Python environment that it needs, on loopback.

The server is a child of the replica that started it and ends with it; the replica holds the LM head, read from the checkpoint, and asks
the server for last hidden states only. Logits and all that is cut from them are made here (see `engine.signals_of_hidden`),
so that they mean the same whichever engine it is, and the server's own log-probabilities, which are text, never travel. The states
of the layers and Q, K and V stay inside such servers, so these wires are refused when they are promised.

Servers know no packed rows: every document travels as a prompt of its own, all of a batch together.
"""

import os
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import requests
import torch
from torch import Tensor

from wfray.config.teacher import EngineName
from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.quant.precision import DTYPES
from wfray.runs.children import die_with_parent, end_group, free_port
from wfray.student.checkpoint import read_config
from wfray.student.weights import Weights
from wfray.teacher.engine import EngineGone, signals_of_hidden
from wfray.teacher.fingerprint import Fingerprint, config_sha256
from wfray.teacher.signals import SignalRequest, encode

START_SECONDS = 600
STOP_SECONDS = 20
ANSWER_SECONDS = 600
HEADS = ("lm_head.weight", "model.embed_tokens.weight")


class ServerEngine(ABC):
    """Signals from hidden states that a server gives; see `Engine`."""

    name: EngineName
    distribution: str
    """The package whose version counts."""

    def __init__(self, directory: Path, dtype: str, python: Path, threads: int, arguments: list[str]) -> None:
        """Start the server and wait until it answers.

        Raises:
            ValueError: it cannot be started; the message ends with the last lines of its log.
        """
        self.directory, self.dtype, self.python, self.threads = directory, dtype, python, threads
        config = read_config(directory)
        self.fingerprint = Fingerprint(
            model_sha256=Weights(directory).sha256(),
            family=config.model_type,
            engine=self.name,
            engine_version=self._version(),
            dtype=dtype,
            tokenizer_sha256=tokenizer_sha256(load_directory_tokenizer(directory)),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            max_length=config.max_position_embeddings,
            config_sha256=config_sha256(config),
            engine_arguments=arguments,
        )
        weights = Weights(directory)
        self.head_VC = weights[next(name for name in HEADS if name in weights)].to(DTYPES[dtype])
        self.url = f"http://127.0.0.1:{free_port()}"
        self.session = requests.Session()
        self.session.trust_env = False
        self.log = tempfile.NamedTemporaryFile("w+b", prefix=f"{self.name}-", suffix=".log")
        self.process = subprocess.Popen(
            [str(python), *self.command(self.url.rpartition(":")[2]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment()},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._wait_until_ready()

    @abstractmethod
    def command(self, port: str) -> list[str]:
        """The server's command line, without the interpreter."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What the server's environment must hold."""

    @abstractmethod
    def hidden(self, documents: list[list[int]]) -> Tensor:
        """The last hidden states of all documents, one after the other [tokens, C], after the final norm."""

    def signals(self, batch: dict[str, np.ndarray], request: SignalRequest) -> dict[str, np.ndarray]:
        """See `Engine.signals`; raises `ValueError` for what `Fingerprint.check` refuses."""
        self.fingerprint.check(request, batch["input_ids"].shape[1])
        pieces = documents_of(batch["segment_ids"])
        states_NC = self.hidden([batch["input_ids"][row, start:stop].tolist() for row, start, stop in pieces])
        hidden_BTC = torch.zeros(*batch["input_ids"].shape, self.fingerprint.hidden_size, dtype=DTYPES[self.dtype])
        lengths = [stop - start for _, start, stop in pieces]
        for (row, start, stop), states_TC in zip(pieces, states_NC.split(lengths), strict=True):
            hidden_BTC[row, start:stop] = states_TC
        return signals_of_hidden(batch["input_ids"], hidden_BTC, self.head_VC, request)

    def head(self) -> np.ndarray:
        """See `Engine.head`."""
        return encode(self.head_VC)

    def check_health(self) -> None:
        """See `Engine.check_health`."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with code {self.process.returncode}: {self._last_lines()}")

    def close(self) -> None:
        """End the server and the processes that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        end_group(self.process.pid)
        self.log.close()

    def post(self, path: str, body: dict) -> requests.Response:
        """Ask the server; an error names what it said. Raises `EngineGone` where it has ended."""
        try:
            response = self.session.post(f"{self.url}{path}", json=body, timeout=ANSWER_SECONDS)
        except requests.RequestException as error:
            raise EngineGone(f"{self.name} is gone ({type(error).__name__}): its replica will be replaced") from None
        if not response.ok:
            raise RuntimeError(f"{self.name} answered {response.status_code} to {path}: {response.text[:500]}")
        return response

    def _version(self) -> str:
        """The version of the engine in its environment; raises `ValueError` where it is not installed."""
        code = f"from importlib.metadata import version; print(version({self.distribution!r}))"
        try:
            return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            raise ValueError(f"python {str(self.python)!r} has no {self.distribution}: see docs/teacher.md") from None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.session.get(f"{self.url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass  # It does not listen yet.
            if self.process.poll() is not None or time.monotonic() > deadline:
                message = self._last_lines()
                self.close()
                raise ValueError(f"{self.name} did not start: {message}")
            time.sleep(0.5)

    def _last_lines(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-1500:]


def documents_of(segment_ids_BT: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every document, in reading order; padding is none."""
    pieces = []
    for row, segments_T in enumerate(segment_ids_BT):
        edges = [0, *(np.flatnonzero(np.diff(segments_T)) + 1).tolist(), len(segments_T)]
        pieces += [(row, start, stop) for start, stop in zip(edges, edges[1:], strict=False) if segments_T[start] > 0]
    return pieces
