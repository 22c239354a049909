"""One unit of packing work: a list of documents becomes one shard.

Both functions are idempotent and depend on nothing but their arguments and the text: a shard is named by the hash of the
text, the tokenizer and the packing options, and is taken as it is when it exists whole. So parts may be packed anywhere, in
any order, again after a crash, and the corpus is the same to the bit.
"""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from wfray.config.data import Source
from wfray.data.encoding import Encoder, TokenizerFacts
from wfray.data.packing import pack
from wfray.data.shards import ShardRecord, Split, find_shard, write_shard
from wfray.data.sources import Document, list_documents, read_documents, sort_key

METHOD = "best-fit-decreasing 1"
"""Changes when equal text would be packed otherwise, so that older shards are not taken for these."""
BYTES_PER_TOKEN = 4
"""Of ordinary text; decides only how many documents go into a part."""


class PackOptions(BaseModel):
    """What packing depends on besides the text."""

    corpus: str
    """The corpus directory, on a file system that every worker sees."""
    tokenizer: TokenizerFacts
    sequence_length: int
    rows_per_shard: int
    heldout_rows: int
    seed: int

    @property
    def directory(self) -> Path:
        return Path(self.corpus)

    @property
    def tokenizer_json(self) -> Path:
        """Where the workers find the tokenizer."""
        return self.directory / "tokenizer" / "tokenizer.json"

    @property
    def tokens_per_shard(self) -> int:
        return self.rows_per_shard * self.sequence_length


class Part(BaseModel):
    """Training documents that become one shard."""

    source: Source
    documents: list[Document]


class Survey(BaseModel):
    """What a source holds: its held-out shard, and the documents that are left for training, in order."""

    heldout: ShardRecord
    documents: list[Document]


def survey(source: Source, options: PackOptions, encoder: Encoder) -> Survey:
    """List the documents of `source` and pack the first of them, in seeded order, as its held-out rows.

    A held-out document longer than a row gives one piece of it, drawn by the seed, so that the rows come from many documents;
    the rest of it is not trained on.

    Raises:
        ValueError: the source is unreadable (see `list_documents`), or too small to leave anything for training.
    """
    documents = list_documents(source, options.seed)
    needed = options.heldout_rows * options.sequence_length
    texts, pieces, num_tokens, num_cut = [], [], 0, 0
    for document, text in zip(documents, read_documents(source, documents), strict=True):
        [tokens] = encoder.encode([text])
        piece = draw_piece(tokens, options.sequence_length, sort_key(source.name, document, options.seed))
        texts.append(text)
        pieces.append(piece)
        num_tokens += len(piece)
        num_cut += len(piece) < len(tokens)
        if num_tokens >= needed:
            break
    if num_tokens < needed or len(texts) == len(documents):
        raise ValueError(
            f"source {source.name}: {len(documents)} documents do not fill {options.heldout_rows} held-out rows of "
            f"{options.sequence_length} tokens and leave anything to train on; lower heldout_rows or name more text"
        )
    rows = pack(pieces, options.sequence_length, options.tokenizer.document_end_id).first(options.heldout_rows, num_cut)
    name = shard_name(source.name, "heldout", texts, options)
    return Survey(heldout=write_shard(options.directory, name, rows), documents=documents[len(texts) :])


def draw_piece(tokens: NDArray[np.int32], sequence_length: int, key: bytes) -> NDArray[np.int32]:
    """A short document whole; of a longer one, one of its full rows, chosen by `key`."""
    if len(tokens) <= sequence_length:
        return tokens
    start = int.from_bytes(key, "big") % (len(tokens) // sequence_length) * sequence_length
    return tokens[start : start + sequence_length]


def split_parts(source: Source, documents: list[Document], options: PackOptions) -> list[Part]:
    """Group documents, in order, into parts of about a shard's tokens; a longer document is a part of its own."""
    limit = options.tokens_per_shard * BYTES_PER_TOKEN
    groups: list[list[Document]] = []
    size = limit
    for document in documents:
        if size >= limit:
            groups.append([])
            size = 0
        groups[-1].append(document)
        size += document.num_bytes
    return [Part(source=source, documents=group) for group in groups]


def parts_wanted(source: Source, parts: list[Part], shards: list[ShardRecord], options: PackOptions) -> list[Part]:
    """The next parts of a source whose first parts became `shards`: all, or as many as `max_tokens` asks for and one more."""
    left = parts[len(shards) :]
    if source.max_tokens is None:
        return left
    missing = source.max_tokens - sum(shard.num_tokens for shard in shards)
    return left[: math.ceil(missing / options.tokens_per_shard) + 1] if missing > 0 else []


def up_to(shards: list[ShardRecord], max_tokens: int | None) -> list[ShardRecord]:
    """The first shards, up to the one with which they reach `max_tokens`."""
    kept, num_tokens = [], 0
    for shard in shards:
        if max_tokens is not None and num_tokens >= max_tokens:
            break
        kept.append(shard)
        num_tokens += shard.num_tokens
    return kept


def pack_part(part: Part, options: PackOptions, encoder: Encoder) -> ShardRecord:
    """Pack one part, or find it packed."""
    texts = list(read_documents(part.source, part.documents))
    name = shard_name(part.source.name, "train", texts, options)
    found = find_shard(options.directory, name)
    if found:
        return found
    rows = pack(encoder.encode(texts), options.sequence_length, options.tokenizer.document_end_id)
    return write_shard(options.directory, name, rows)


def shard_name(source: str, split: Split, texts: Iterable[str], options: PackOptions) -> str:
    """`<source>-<split>-<hash>`: the hash of the text and of everything else that the shard depends on."""
    stated = [METHOD, source, split, options.sequence_length, *options.tokenizer.model_dump().values(), options.seed]
    digest = hashlib.sha256("\0".join(map(str, stated)).encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"{source}-{split}-{digest.hexdigest()[:20]}"
