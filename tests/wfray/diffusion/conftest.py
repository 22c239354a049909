"""A tiny model with a mask token, and packed rows with prompts, short and empty responses, and padding."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.wfray.student.conftest import rough_model
from wfray.config.convert import Subln
from wfray.data.batch import CONTEXT, RESPONSE, make_batch
from wfray.diffusion.attention import use_block_attention
from wfray.student import convert
from wfray.train.feed import as_tensors

MASK_ID = 99
"""The last token of the tiny vocabulary; texts use the others."""
BLOCK = 4
DOCUMENTS = [[(3, 7), (1, 2), (9, 0)], [(2, 6), (0, 11)], [(5, 1), (4, 8), (2, 2)]]
"""Of each row: (tokens of the prompt, tokens of the response) of its documents."""
LENGTH = 24


def diffusion_model(family: str = "llama", ternary: bool = True, attention: str = "blocks") -> PreTrainedModel:
    """Two layers of random weights; `attention`: `blocks`, or one of transformers' own for references."""
    model = rough_model(family)
    if ternary:
        model = convert(model, Subln(init="ones"))
    if attention == "blocks":
        use_block_attention(model)
    else:
        model.set_attn_implementation(attention)
    return model


def packed_batch(documents: list[list[tuple[int, int]]] = DOCUMENTS, length: int = LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random tokens."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, MASK_ID, (len(documents), length)).astype(np.int32)
    segments, marks = np.zeros(ids.shape, np.int32), np.full(ids.shape, CONTEXT, np.uint8)
    for row, parts in enumerate(documents):
        start = 0
        for number, (prompt, response) in enumerate(parts, start=1):
            segments[row, start : start + prompt + response] = number
            marks[row, start + prompt : start + prompt + response] = RESPONSE
            start += prompt + response
    rows = np.arange(len(documents))
    return as_tensors(make_batch(ids, segments, np.zeros(len(documents), np.int16), rows + 5, marks), slice(None))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return packed_batch()
