"""Weight files: one or shards, written and read tensor by tensor, and refused with the mend where they are not whole."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wfray.runs.files import sha256_of
from wfray.student.weights import INDEX, SINGLE, Weights, write_weights

TENSORS = {f"layer.{index}.weight": torch.arange(256.0).view(16, 16) + index for index in range(5)}


def write(directory: Path, max_shard_bytes: int, dtype: torch.dtype = torch.float32) -> Path:
    directory.mkdir()
    write_weights(directory, TENSORS, dtype, max_shard_bytes)
    return directory


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three shards of at most two tensors."""
    return write(tmp_path / "model", max_shard_bytes=2048)


@pytest.mark.parametrize(("limit", "num_files"), [(10_000, 1), (2048, 3), (100, 5)])
def test_what_is_written_is_read(tmp_path: Path, limit: int, num_files: int) -> None:
    weights = Weights(write(tmp_path / "model", limit))
    assert len(weights.files) == num_files and (tmp_path / "model" / INDEX).exists() == (num_files > 1)
    assert weights.keys() == TENSORS.keys() and all(torch.equal(weights[name], TENSORS[name]) for name in TENSORS)
    assert weights["layer.1.weight"].dtype == torch.float32
    assert weights.load(torch.bfloat16)["layer.1.weight"].dtype == torch.bfloat16
    with pytest.raises(KeyError):
        weights["layer.9.weight"]


def test_the_index_is_that_of_hugging_face(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 1024
    assert index["weight_map"]["layer.4.weight"] == "model-00003-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(sharded / file)[name], TENSORS[name])


def test_weights_are_written_from_weights_in_another_dtype(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    write_weights(tmp_path / "copy", Weights(sharded).select(["layer.0.weight", "layer.3.weight"]), torch.bfloat16)
    copy = load_file(tmp_path / "copy" / SINGLE)
    assert {name: tensor.dtype for name, tensor in copy.items()} == dict.fromkeys(["layer.0.weight", "layer.3.weight"], torch.bfloat16)
    assert torch.equal(copy["layer.3.weight"], TENSORS["layer.3.weight"].bfloat16())


def test_the_hash_of_one_file_is_the_file_s_and_of_shards_that_of_all(sharded: Path, tmp_path: Path) -> None:
    single = write(tmp_path / "single", 10_000)
    assert Weights(single).sha256() == sha256_of(single / SINGLE)
    before = Weights(sharded).sha256()
    assert before == Weights(write(tmp_path / "again", 2048)).sha256() != Weights(single).sha256()
    last = sharded / "model-00003-of-00003.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert Weights(sharded).sha256() != before


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="are missing.*run the stage that makes them again.*save such a checkpoint as safetensors first"):
        Weights(tmp_path)


@pytest.mark.parametrize("content", [lambda old: old[:-10], lambda old: old[:5], lambda old: b"not a tensor file"])
def test_truncated_and_foreign_files_are_refused_by_name(sharded: Path, content) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.write_bytes(content(shard.read_bytes()))
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors' cannot be read .*truncated or foreign; run the stage"):
        Weights(sharded)


def test_a_missing_shard_is_refused_by_name(sharded: Path) -> None:
    (sharded / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="names model-00001-of-00003.safetensors, which is not in its directory: copy the missing shards"):
        Weights(sharded)


def test_an_index_that_points_out_of_its_directory_is_refused(sharded: Path) -> None:
    outside = write(sharded.parent / "outside", 10_000)
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"layer.0.weight": f"../{outside.name}/{SINGLE}"}}))
    with pytest.raises(ValueError, match="names ../outside/model.safetensors, which is not in its directory"):
        Weights(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_that_is_none_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(ValueError, match=f"index '.*{INDEX}' (is truncated or foreign|names no file).*run the stage"):
        Weights(sharded)


def test_an_index_of_another_model_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["other.weight"] = index["weight_map"].pop("layer.0.weight")
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="disagree about layer.0.weight, other.weight: they are of different models; copy all files"):
        Weights(sharded)


def test_two_models_in_one_directory_are_refused(sharded: Path) -> None:
    write_weights(sharded, TENSORS, torch.float32)
    with pytest.raises(ValueError, match="two models in one directory; delete the one that is stale"):
        Weights(sharded)
