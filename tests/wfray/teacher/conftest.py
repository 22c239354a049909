"""A small teacher on disk, a packed batch, and a service over it."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.wfray.data.conftest import smollm2, tokenizer
from tests.wfray.student.conftest import tiny_model
from wfray.teacher import TransformersEngine

__all__ = ["smollm2", "tokenizer"]


@pytest.fixture(scope="session")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teacher")
    tiny_model("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(checkpoint, "bfloat16")


@pytest.fixture
def batch() -> dict[str, np.ndarray]:
    """Two rows: documents of 5 and 7 tokens, then one of 9 and padding of 3."""
    generator = np.random.default_rng(1)
    return {
        "input_ids": generator.integers(1, 100, (2, 12), dtype=np.int32),
        "position_ids": np.array([[*range(5), *range(7)], [*range(9), *range(3)]], dtype=np.int32),
        "segment_ids": np.array([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3], dtype=np.int32),
    }
