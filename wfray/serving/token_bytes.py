"""What each token of a Hugging Face tokenizer says, in bytes: a token may be a part of a character.

Tokenizers of bytes (GPT-2's and all that follow it) write each byte as a printable character of its own; those of SentencePiece write a
space as `▁` and single bytes as `<0x0A>`. Special tokens stand as they are.
"""

import re

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def all_token_bytes(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> list[bytes]:
    """The bytes of every token id below `vocab_size`; ids that no token has are empty."""
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    of_bytes = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    known = [added[i].encode() if i in added else from_byte_level(n) if of_bytes else from_pieces(n) for i, n in enumerate(names)]
    return (known + [b""] * vocab_size)[:vocab_size]


BYTES_OF_CHARACTERS = {character: byte for byte, character in bytes_to_unicode().items()}


def from_byte_level(name: str | None) -> bytes:
    """Each character is a byte."""
    return bytes(BYTES_OF_CHARACTERS[character] for character in name or "")


def from_pieces(name: str | None) -> bytes:
    """SentencePiece's way."""
    if found := BYTE.fullmatch(name or ""):
        return bytes([int(found[1], 16)])
    return (name or "").replace(SPACE, " ").encode()
