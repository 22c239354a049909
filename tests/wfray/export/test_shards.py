"""A model in shards is exported as the same model in one file is, to the byte."""

import shutil
from pathlib import Path

import pytest
import torch

from wfray.config.export import GGUF
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.original import write_original
from wfray.student.weights import SINGLE, Weights, write_weights

WRITERS = {"original": write_original, "student": lambda model, target: write_bitnet(model, target, GGUF(kind="gguf"))}


@pytest.mark.parametrize(("number", "kind"), enumerate(WRITERS))
def test_shards_make_the_same_file(small: tuple[Path, Path], tmp_path: Path, number: int, kind: str) -> None:
    single, sharded = small[number], tmp_path / "sharded"
    shutil.copytree(single, sharded, ignore=lambda *_: [SINGLE])
    write_weights(sharded, Weights(single), torch.bfloat16 if kind == "original" else torch.float32, max_shard_bytes=30_000)
    assert len(Weights(sharded).files) > 2
    for model in (single, sharded):
        WRITERS[kind](model, tmp_path / f"{model.name}.gguf")
    assert (tmp_path / "sharded.gguf").read_bytes() == (tmp_path / f"{single.name}.gguf").read_bytes()
