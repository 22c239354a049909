"""Text to tokens on the Rust backend alone: a worker that encodes loads neither transformers nor torch.

The backend keeps some hundred bytes a token while it works, so texts are handed to it in batches of bounded size, and an enormous
text in pieces. A piece ends between a letter and white space where there is such a place: byte-level tokenizers (GPT-2, Llama 3,
Qwen) never join tokens there, so the pieces' tokens are the text's; for other tokenizers one token in some 200,000 may differ.

Special tokens that happen to stand in a text are encoded as the characters that they are, so no document can end itself or
pose as a chat turn. Truncation and padding that a `tokenizer.json` may carry are switched off.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from tokenizers import Tokenizer

SEAM = re.compile(r"(?<=[^\W\d_])(?=\s)")
"""Where a text may be divided without changing its tokens."""
T = TypeVar("T")
BATCH_CHARACTERS = 1_000_000
"""Given to the backend at once."""


class TokenizerFacts(BaseModel):
    """What a corpus records of the tokenizer that it was made with."""

    tokenizer_sha256: str
    """See `wfray.data.tokenizer.tokenizer_sha256`."""
    vocab_size: int
    document_end_id: int
    """The token that ends a document."""


class Encoded(NamedTuple):
    """Tokens of documents, and what each token is to the loss."""

    tokens: list[NDArray[np.int32]]
    """[length] each."""
    marks: list[NDArray[np.uint8]] | None
    """[length] each, of conversations; None: plain text, every token is learned."""


class DocumentEncoder(Protocol):
    """What packing needs of an encoder."""

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of what its tokens depend on besides text, vocabulary and merges."""

    def encode_documents(self, texts: list[str]) -> Encoded:
        """Tokens and marks of each document."""


class Encoder:
    """Encodes documents, each closed by its end-of-text token."""

    def __init__(self, tokenizer_json: Path, end_id: int) -> None:
        """Open a `tokenizer.json`; `end_id` is the token that ends a document."""
        self.identity = rules_sha256(tokenizer_json)
        self.tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.end_id = end_id

    def encode_documents(self, texts: list[str]) -> Encoded:
        """The tokens of plain texts, without marks."""
        return Encoded(self.encode(texts), None)

    def encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Tokens of each text, int32 [length + 1], the last one being `end_id`."""
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in split_text(text)]
        tokens: list[list[NDArray[np.int32]]] = [[] for _ in texts]
        for batch in batches(pieces, lambda piece: len(piece[1])):
            encodings = self.tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
            for (number, _), encoding in zip(batch, encodings, strict=True):
                tokens[number].append(np.array(encoding.ids, dtype=np.int32))
        end = np.array([self.end_id], dtype=np.int32)
        return [np.concatenate([*parts, end]) for parts in tokens]


def rules_sha256(tokenizer_json: Path) -> str:
    """SHA-256 (hex) of how a `tokenizer.json` changes and splits text before its merges: `tokenizer_sha256` does not cover it."""
    rules = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([rules["normalizer"], rules["pre_tokenizer"]], sort_keys=True).encode()).hexdigest()


def split_text(text: str, limit: int = BATCH_CHARACTERS) -> Iterator[str]:
    """Pieces of at most `limit` characters that make up `text`."""
    start = 0
    while len(text) - start > limit:
        seams = list(SEAM.finditer(text, start + limit // 2, start + limit))
        stop = seams[-1].start() if seams else start + limit
        yield text[start:stop]
        start = stop
    yield text[start:]


def batches(items: Iterable[T], num_characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items, grouped to about `BATCH_CHARACTERS`: the tokenizer's backend keeps some hundred bytes a token."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += num_characters(item)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
