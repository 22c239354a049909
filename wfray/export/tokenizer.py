"""A Hugging Face byte-level BPE tokenizer as GGUF metadata, and the proof that llama.cpp tokenizes real text as it does.

llama.cpp does not read a pre-tokenizer from the file but knows some by name. The name is found from the structure of the
tokenizer's own pre-tokenizer, never from the model's name: SmolLM2's published tokenizer splits digits ("smollm"), the one
that transformers rebuilds from a GGUF file does not ("gpt-2").
"""

import json
import os
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wfray.export.llama_cpp import Vocabulary

QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def add_tokenizer(writer: GGUFWriter, directory: Path, vocab_size: int) -> None:
    """Write the tokenizer in `directory` into a file's metadata: tokens, types, merges, special ids and chat template.

    Args:
        vocab_size: rows of the embedding; ids beyond the tokenizer's are filled with unused tokens.

    Raises:
        ValueError: the tokenizer is no byte-level BPE that llama.cpp knows, or has more tokens than the embedding has rows.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, types = token_table(backend, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(backend))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]])
    writer.add_add_bos_token(adds_bos(tokenizer))
    for add_id, token_id in [
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ]:
        if token_id is not None:
            add_id(token_id)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its beginning-of-text token before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def token_table(backend: dict[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """The text and the type of every id."""
    vocabulary = {**backend["model"]["vocab"], **{token["content"]: token["id"] for token in backend["added_tokens"]}}
    if max(vocabulary.values()) >= vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(vocabulary.values())}, but the embedding only {vocab_size} rows")
    tokens = [f"[UNUSED{index}]" for index in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for text, index in vocabulary.items():
        tokens[index], types[index] = text, TokenType.NORMAL
    for token in backend["added_tokens"]:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    return tokens, types


def pre_tokenizer_name(backend: dict[str, Any]) -> str:
    """llama.cpp's name of a tokenizer's pre-tokenizer.

    Raises:
        ValueError: it is none of those that this project has checked.
    """
    match backend["pre_tokenizer"], backend["normalizer"], backend["model"]["type"]:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}, None, "BPE":
            return "gpt-2"
        case (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
                ],
            },
            None,
            "BPE",
        ):
            return "smollm"
        case (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
                ],
            },
            {"type": "NFC"},
            "BPE",
        ) if pattern == QWEN2_PATTERN:
            return "qwen2"
    raise ValueError(
        f"llama.cpp has no known name for this tokenizer's pre-tokenizer {json.dumps(backend['pre_tokenizer'])}; "
        "add its structure and name to wfray/export/tokenizer.py"
    )


def check_tokenizer(gguf: Path, directory: Path, texts: list[str]) -> int:
    """Tokenize `texts` with llama.cpp and with the tokenizer in `directory`.

    Returns:
        The number of tokens compared.

    Raises:
        ValueError: they differ; the message shows the first place.
    """
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(directory), Vocabulary(gguf)
    num_tokens = 0
    for text in texts:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = vocabulary.tokenize(text)
        if found != expected:
            place = len(os.path.commonprefix([found, expected]))
            before = tokenizer.decode(expected[:place])[-40:]
            raise ValueError(
                f"llama.cpp tokenizes the text otherwise than the student's tokenizer: after {before!r} it reads ids "
                f"{found[place : place + 4]}, not {expected[place : place + 4]}; the export would not see what was trained"
            )
        num_tokens += len(expected)
    return num_tokens
