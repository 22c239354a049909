"""The tokenizer of a model source, loaded without its weights, and its identity.

Loading from a GGUF file reads its metadata only. Transformers rebuilds vocabulary, merges and special tokens from it but
drops the rule by which text is split before the merges (`tokenizer.ggml.pre`): with SmolLM2, numbers after two spaces would
be tokenized otherwise than by the original and by llama.cpp. The rule is put back here, and an unknown one is refused.
"""

import hashlib
import json
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf import read_gguf_metadata

from wfray.config.model import HubModel, LocalModel, ModelSource, PackageGGUF, RandomModel
from wfray.data.encoding import TokenizerFacts
from wfray.data.packages import package_directory
from wfray.runs import resolve_home

WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLIT_RULES = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
}
"""What `tokenizer.ggml.pre` of a byte-level BPE stands for."""

DOCUMENT_END_TOKENS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"]


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerFast:
    """Load the tokenizer of `source`; its weights are not read.

    Raises:
        ValueError: the package or file is missing, the tokenizer has no Rust backend, or a GGUF's split rule is unknown.
    """
    match source:
        case PackageGGUF():
            return load_gguf_tokenizer(package_directory(source.package), source.file)
        case HubModel():
            return checked(AutoTokenizer.from_pretrained(source.id, revision=source.revision), source.id)
        case LocalModel():
            return load_directory_tokenizer(resolve_home(source.path))
        case RandomModel():
            return load_tokenizer(source.tokenizer)


def save_tokenizer(source: ModelSource, directory: Path) -> TokenizerFacts:
    """Write the tokenizer of `source` as Hugging Face files (`tokenizer.json` ...) into `directory`; see `load_tokenizer`."""
    tokenizer = load_tokenizer(source)
    tokenizer.save_pretrained(directory)
    return TokenizerFacts(
        tokenizer_sha256=tokenizer_sha256(tokenizer), vocab_size=len(tokenizer), document_end_id=document_end_id(tokenizer)
    )


def load_directory_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer files of a checkpoint directory."""
    if not (directory / "tokenizer.json").is_file():
        raise ValueError(f"{str(directory)!r} holds no tokenizer.json: name a checkpoint directory with its tokenizer")
    return checked(AutoTokenizer.from_pretrained(directory), str(directory))


def load_gguf_tokenizer(directory: Path, file: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer in the metadata of `directory/file`, split rule included."""
    path = directory / file
    if not path.is_file():
        present = ", ".join(sorted(entry.name for entry in directory.iterdir()))
        raise ValueError(f"{str(path)!r} does not exist; the directory holds: {present}")
    metadata, _ = read_gguf_metadata(str(path))
    rule = metadata.get("tokenizer.ggml.pre")
    if rule not in SPLIT_RULES:
        raise ValueError(
            f"{file}: the tokenizer splits text by rule {rule!r}, which is not one of {', '.join(SPLIT_RULES)}; "
            "use the original checkpoint's tokenizer (kind: directory or hub)"
        )
    # Not AutoTokenizer, which reads the whole file's metadata another way, ten times as slowly, for the class alone.
    tokenizer = checked(PreTrainedTokenizerFast.from_pretrained(directory, gguf_file=file), file)
    tokenizer.backend_tokenizer.pre_tokenizer = SPLIT_RULES[rule]
    return tokenizer


def checked(tokenizer: object, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer, if it has a Rust backend."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer of {name!r} has no fast form (tokenizer.json); convert it first")
    return tokenizer


def document_end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a document of plain text.

    Chat models answer with an end-of-turn token as their EOS (SmolLM2, Qwen: `<|im_end|>`), but texts were divided by another
    one in pre-training (`<|endoftext|>`), which the vocabulary still has. That one is preferred; without it, the EOS is taken.

    Raises:
        ValueError: the tokenizer has neither.
    """
    special = tokenizer.get_added_vocab()
    for token in DOCUMENT_END_TOKENS:
        if token in special:
            return special[token]
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    raise ValueError(f"the tokenizer has no token that ends a document: none of {', '.join(DOCUMENT_END_TOKENS)} and no EOS")


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of vocabulary, merges and special ids: equal where the same number means the same token.

    Computed on the backend's own JSON, so a tokenizer loaded from a GGUF and the files saved from it are the same.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    essence = [
        sorted(tokenizer.get_vocab().items()),
        backend["model"].get("merges"),
        sorted((token["id"], token["content"]) for token in backend["added_tokens"] if token["special"]),
    ]
    return hashlib.sha256(json.dumps(essence, separators=(",", ":")).encode()).hexdigest()
