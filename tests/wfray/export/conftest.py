"""A tiny random student and original with a tiny tokenizer, written by hand from the format's description."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    "In 1999, twelve people's cafés cost $3.50 each.\n\n    def f(x):\n        return x + 1\n",
    "The ice-covered moon Europa orbits Jupiter every 85 hours; its ocean may hold twice the water of Earth's.",
    "Fellow citizens: the state of the union is, as ever, described by numbers such as 1,234,567.89 and 10%.",
]


@dataclass(frozen=True)
class Size:
    """Widths of a tiny Llama."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    eps: float = 1e-5


VOCABULARY = 512
SIZES = {
    "small": Size(hidden=64, intermediate=96, heads=2, kv_heads=1),
    # Each projection's rows fit all types.
    "even": Size(hidden=256, intermediate=512, heads=4, kv_heads=2),
    # No row is a multiple of 256: hidden becomes 768 in the TQ types (groups of 3 heads of 16), intermediate 512.
    "narrow": Size(hidden=96, intermediate=288, heads=6, kv_heads=2),
    "narrow, other eps": Size(hidden=96, intermediate=288, heads=6, kv_heads=2, eps=1e-2),
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts below, of the same structure as SmolLM2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[1], eos_token=special[2], pad_token=special[2])


@pytest.fixture(scope="session")
def build(tmp_path_factory, tokenizer):
    """A function that writes a tiny original and student of given widths and returns both directories."""

    def make(name: str, subln_eps: float = 1e-5) -> tuple[Path, Path]:
        size = SIZES[name]
        root = tmp_path_factory.mktemp("models")
        return write_original(root / "original", size, tokenizer), write_student(root / "student", size, subln_eps, tokenizer)

    return make


@pytest.fixture(scope="session")
def small(build):
    """(original, student) of the smallest size."""
    return build("small")


def llama(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, large enough that predictions differ clearly; a trained model's embedding is smaller than its projections."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=max(VOCABULARY, len(tokenizer)),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=2,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=512,
        rms_norm_eps=size.eps,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.05 if "embed" in name else 0.1)
    return model


def write_original(directory: Path, size: Size, tokenizer: PreTrainedTokenizerFast) -> Path:
    llama(size, tokenizer).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_student(directory: Path, size: Size, subln_eps: float, tokenizer: PreTrainedTokenizerFast) -> Path:
    model = llama(size, tokenizer)
    tensors = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.o_proj.norm.weight"] = 0.5 + torch.rand(size.hidden)
        tensors[f"model.layers.{layer}.mlp.down_proj.norm.weight"] = 0.5 + torch.rand(size.intermediate)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    described = {"format": 1, "subln": {"placement": "output", "eps": subln_eps}, "quantization_lambda": 1.0}
    change_config(directory, {**model.config.to_dict(), "wrinklefree": described})
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def edited(tmp_path):
    """A function that copies a model directory and changes keys of its config.json."""

    def make(directory: Path, **changes: object) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(directory, copy)
        change_config(copy, changes)
        return copy

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real and awkward text."""
    return TEXTS


def change_config(directory: Path, changes: dict) -> None:
    """Update keys of a model directory's config.json."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **changes}, default=str))
