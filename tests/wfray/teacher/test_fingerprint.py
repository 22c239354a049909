"""What a teacher refuses to be asked, by its fingerprint alone."""

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from wfray.teacher import Fingerprint, SignalRequest
from wfray.teacher.fingerprint import config_sha256

QWEN = Fingerprint(
    model_sha256="a" * 64, family="qwen2", engine="transformers", engine_version="5.23.0", dtype="bfloat16", tokenizer_sha256="b" * 64,
    vocab_size=152_064, hidden_size=3584, num_layers=28, max_length=32_768,
)  # fmt: skip
HIDDEN: dict[str, Any] = {"wires": ["hidden"]}


def test_a_table_that_is_padded_further_is_cut_and_a_shorter_one_refused() -> None:
    """Qwen2.5's small models have 151,936 entries, its large ones 152,064, of one tokenizer."""
    QWEN.check(SignalRequest(**HIDDEN, vocab_size=151_936))
    small = QWEN.model_copy(update={"vocab_size": 151_936})
    with pytest.raises(ValueError, match="the teacher's vocabulary has 151936 entries, the student's 152064"):
        small.check(SignalRequest(**HIDDEN, vocab_size=152_064))


@pytest.mark.parametrize(
    ("request_", "num_tokens", "message"),
    [
        (HIDDEN, 32_769, "rows of 32769 tokens exceed the teacher's context of 32768"),
        ({"wires": ["topk"], "num_ids": 152_064}, 1, "num_ids 152064 must be less than the vocabulary of 152064"),
        ({"wires": ["topk"], "num_ids": 10, "vocab_size": 10}, 1, "num_ids 10 must be less than the vocabulary of 10"),
        ({"wires": ["qkv"], "qkv_layer": 28}, 1, "qkv_layer 28 does not exist: the teacher has 28 layers"),
    ],
)
def test_what_cannot_be_answered_is_named(request_: dict[str, Any], num_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QWEN.check(SignalRequest(**request_), num_tokens)


@pytest.mark.parametrize("token", [-1, 152_064])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is not in the teacher's vocabulary of 152064"):
        QWEN.check_tokens(np.array([[1, token, 2]]))
    QWEN.check_tokens(np.array([[0, 152_063]]))


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"engine": "vllm"}, {"model_sha256": "c" * 64}, {"engine_version": "5.24.0"}])
def test_another_teacher_has_another_name_and_the_difference_is_told(change: dict[str, str]) -> None:
    other = QWEN.model_copy(update=change)
    assert other.digest != QWEN.digest
    assert list(change)[0] in QWEN.differences(other) and "tokenizer" not in QWEN.differences(other)


def test_equal_weights_of_another_function_are_another_teacher() -> None:
    settings = {"hidden_size": 64, "num_hidden_layers": 2}
    given, same = LlamaConfig(**settings), LlamaConfig(**settings, name_or_path="elsewhere", dtype="bfloat16")
    others = [
        LlamaConfig(**settings, rms_norm_eps=0.1),
        LlamaConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": 10.0}),
    ]
    assert config_sha256(given) == config_sha256(same)
    assert len({config_sha256(config) for config in (given, *others)}) == 3
    teachers = [QWEN.model_copy(update={"config_sha256": config_sha256(config)}) for config in (given, *others)]
    assert len({teacher.digest for teacher in teachers}) == 3 and "config_sha256" in teachers[0].differences(teachers[1])
