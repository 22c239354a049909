"""Any source becomes one bfloat16 checkpoint directory that transformers reads too."""

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.wfray.student.conftest import rough_model
from wfray.config.model import Architecture, HubModel, LocalModel
from wfray.student import hidden_states, load_original, materialize
from wfray.student.families import FAMILIES
from wfray.student.original import architecture_of, check_architecture


def checkpoint(directory: Path, family: str = "llama", **options: object) -> Path:
    """A float32 checkpoint with a tokenizer."""
    rough_model(family).save_pretrained(directory, **options)
    vocabulary = {f"w{index}": index for index in range(100)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))).save_pretrained(directory)
    return directory


def local(directory: Path, architecture: Architecture | None = None) -> LocalModel:
    return LocalModel(kind="directory", path=str(directory), architecture=architecture)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["single", "sharded"])
def test_a_directory_becomes_bfloat16_and_is_what_it_was(family, options, tmp_path: Path, packed: dict[str, Tensor]) -> None:
    original = materialize(local(checkpoint(tmp_path / "given", family, **options)), tmp_path / "models")
    wanted = rough_model(family).bfloat16().state_dict()
    stored = load_file(original / "model.safetensors")
    assert stored.keys() == wanted.keys() - {"lm_head.weight"} and all(torch.equal(stored[name], wanted[name]) for name in stored)
    theirs = AutoModelForCausalLM.from_pretrained(original, attn_implementation="segments").eval()
    assert theirs.dtype == torch.bfloat16 and theirs.config.architectures == [type(theirs).__name__]
    assert torch.equal(hidden_states(load_original(original, torch.bfloat16), packed), hidden_states(theirs, packed))
    assert materialize(local(tmp_path / "given"), tmp_path / "models") == original


def test_a_copy_of_a_tied_head_is_left_out(tmp_path: Path) -> None:
    given = checkpoint(tmp_path / "given")
    tensors = load_file(given / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, given / "model.safetensors", {"format": "pt"})
    original = materialize(local(given), tmp_path / "models")
    assert load_file(original / "model.safetensors").keys() == tensors.keys()


def test_a_hub_checkpoint_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "models--someone--tiny"
    snapshot = checkpoint(cached / "snapshots" / ("0" * 40), "qwen3", max_shard_size="20KB")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    for module in ("huggingface_hub.constants", "huggingface_hub._snapshot_download.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path))
    source = HubModel(kind="hub", id="someone/tiny", architecture=architecture_of(rough_model("qwen3").config))
    assert (snapshot / "model.safetensors.index.json").exists()
    assert load_original(materialize(source, tmp_path / "models")).config.model_type == "qwen3"


def test_an_unknown_family_is_refused_by_name_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2' cannot become students; known families: gemma3_text, llama"):
        materialize(local(tmp_path), tmp_path / "models")
    assert not [path for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"]


def test_another_architecture_is_refused_with_every_difference() -> None:
    found = architecture_of(rough_model("llama").config)
    assert (found.head_dim, found.hidden_size) == (16, 32)
    wanted = Architecture.model_validate({**found.model_dump(), "num_layers": 30, "hidden_size": 576})
    with pytest.raises(ValueError, match=r"num_layers is 2, not 30; hidden_size is 32, not 576"):
        check_architecture(rough_model("llama").config, wanted)


def test_two_jobs_that_want_one_model_write_it_once(tmp_path: Path) -> None:
    """The second waits, and the directory that the first reads on stays."""
    given = checkpoint(tmp_path / "given", max_shard_size="20KB")
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        found = pool.starmap(inode_of_model, [(str(given), str(tmp_path / "models"))] * 6)
    assert len(set(found)) == 1


def inode_of_model(given: str, models: str) -> int:
    """Of the first file of the directory."""
    return (materialize(local(Path(given)), Path(models)) / "config.json").stat().st_ino
