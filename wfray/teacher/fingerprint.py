"""Who a teacher is, and what it can be asked: checked by a student before its first step and before every request."""

import hashlib
import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from transformers import PretrainedConfig

from wfray.config.teacher import ENGINE_WIRES, RECORD, EngineName
from wfray.teacher.signals import SignalRequest

NOT_THE_FUNCTION = ("_name_or_path", "transformers_version", "dtype", "architectures")
"""Of a model's configuration: where it came from, and what has a field of its own."""


def config_sha256(config: PretrainedConfig) -> str:
    """SHA-256 (hex) of what a model's configuration says of the function that it computes."""
    fields = {name: value for name, value in config.to_dict().items() if name not in NOT_THE_FUNCTION}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


class Fingerprint(BaseModel):
    """Equal fingerprints give equal signals, up to the last bits where forward passes are shared."""

    model_sha256: str
    family: str
    engine: EngineName
    engine_version: str
    dtype: str
    tokenizer_sha256: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_length: int
    engine_arguments: list[str] = []
    """Of a server's command line: they may change what it computes."""
    config_sha256: str = ""
    """Of the model's configuration: equal weights with other rotary frequencies are another function."""

    source_sha256: str = ""
    """`TeacherConfig.source_sha256` of the deployment; models of one content may come from several sources."""

    @property
    def digest(self) -> str:
        """A short name of it, 16 hexadecimal digits, whatever source it came from."""
        return hashlib.sha256(self.model_dump_json(exclude={"source_sha256"}).encode()).hexdigest()[:16]

    def check(self, request: SignalRequest, num_tokens: int = 0) -> None:
        """Raise `ValueError` when rows of `num_tokens` cannot be answered as the request wants."""
        if num_tokens > self.max_length:
            raise ValueError(f"rows of {num_tokens} tokens exceed the teacher's context of {self.max_length}: pack shorter rows")
        if missing := [wire for wire in request.wires if wire not in ENGINE_WIRES[self.engine]]:
            raise ValueError(
                f"the teacher's engine {self.engine} cannot give {', '.join(missing)}: deploy the teacher with engine=transformers, "
                "or drop the objectives that need it"
            )
        vocab_size = request.vocab_size or self.vocab_size
        if vocab_size > self.vocab_size:
            raise ValueError(
                f"the teacher's vocabulary has {self.vocab_size} entries, the student's {vocab_size}: choose a teacher whose table is as "
                "long as the student's or longer (padding beyond it is left out)"
            )
        if (request.num_ids or 0) >= vocab_size:
            raise ValueError(f"num_ids {request.num_ids} must be less than the vocabulary of {vocab_size}")
        if "qkv" in request.wires and (request.qkv_layer or 0) >= self.num_layers:
            raise ValueError(f"qkv_layer {request.qkv_layer} does not exist: the teacher has {self.num_layers} layers")

    def check_tokens(self, input_ids_BT: np.ndarray) -> None:
        """Raise `ValueError` for tokens outside the vocabulary: on a GPU they would end the process."""
        outside = input_ids_BT[(input_ids_BT < 0) | (input_ids_BT >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"token {outside[0]} is not in the teacher's vocabulary of {self.vocab_size}")

    def differences(self, other: "Fingerprint") -> str:
        """The fields in which two teachers differ, for a message."""
        mine, others = self.model_dump(), other.model_dump()
        return ", ".join(f"{name} {mine[name]!s:.20} -> {others[name]!s:.20}" for name in mine if mine[name] != others[name])


def recorded_teacher(stage: Path) -> Fingerprint | None:
    """Who taught the stage in a directory; None where none is recorded."""
    path = stage / RECORD
    return Fingerprint.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None
