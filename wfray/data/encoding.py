"""Text to tokens on the Rust backend alone: a worker that encodes loads neither transformers nor torch.

Special tokens that happen to stand in a text are encoded as the characters that they are, so no document can end itself or
pose as a chat turn. Truncation and padding that a `tokenizer.json` may carry are switched off.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from tokenizers import Tokenizer


class TokenizerFacts(BaseModel):
    """What a corpus records of the tokenizer that it was made with."""

    tokenizer_sha256: str
    """See `wfray.data.tokenizer.tokenizer_sha256`."""
    vocab_size: int
    document_end_id: int
    """The token that ends a document."""


class Encoder:
    """Encodes documents, each closed by its end-of-text token."""

    def __init__(self, tokenizer_json: Path, end_id: int) -> None:
        """Open a `tokenizer.json`; `end_id` is the token that ends a document."""
        self.tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.end_id = end_id

    def encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Tokens of each text, int32 [length + 1], the last one being `end_id`."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*encoding.ids, self.end_id], dtype=np.int32) for encoding in encodings]
