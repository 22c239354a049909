"""Tiny random models, full-precision and ternary, and documents packed into a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wfray.config.convert import Subln
from wfray.data.batch import PackedBatch, make_batch
from wfray.data.packing import pack
from wfray.student import convert, load_original, load_student, save_student


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `original/` and `student/` of a random two-layer Llama, vocabulary 257."""
    stage = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(stage / "original")
    student = convert(load_original(stage / "original"), Subln(init="ones"), None)
    save_student(student, stage / "student", tokenizer_from=stage / "original")
    return stage


@pytest.fixture(params=["original", "student"])
def model(request: pytest.FixtureRequest, models: Path) -> PreTrainedModel:
    load = {"original": load_original, "student": load_student}[request.param]
    return load(models / request.param)


@pytest.fixture
def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 257, length).astype(np.int32) for length in (40, 23, 17, 9, 31, 2, 1)]


@pytest.fixture
def batch(documents: list[np.ndarray]) -> PackedBatch:
    """The documents packed into rows of 48, with padding."""
    rows = pack(documents, sequence_length=48, padding_id=0)
    num_rows = len(rows.input_ids)
    return make_batch(rows.input_ids, rows.segment_ids, np.zeros(num_rows, np.int16), np.arange(num_rows, dtype=np.int64))
