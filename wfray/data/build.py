"""One unit of packing work: documents become shards.

A shard is named by the hash of the text, the tokenizer and the packing options, and is taken as it is when it exists whole; a unit
that was packed to its end leaves a receipt, so a resumed job does not even read it again. Nothing depends on anything but the
arguments and the files: units may be packed anywhere, in any order, again after a crash, and the corpus is the same to the bit.

A unit's documents are held in windows of `unit_bytes` of text, shuffled, and packed shard by shard. The first unit of a source that
has enough documents gives, from its first window, the held-out rows; until one has, the source's units are packed one by one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from wfray.data.cleaning import Cleaner, EvaluationRuns
from wfray.data.encoding import DocumentEncoder, Encoded
from wfray.data.options import BYTES_PER_TOKEN, PackOptions
from wfray.data.packing import PackedRows, concatenate, pack
from wfray.data.removed import Removed, merge_removed
from wfray.data.shards import ShardRecord, Split, find_shard, is_whole, write_shard
from wfray.data.sources import Document, Unit, document_key, read_unit, shuffled
from wfray.runs import write_json

METHODS = {"best_fit": "best-fit-decreasing 1", "concatenate": "concatenate 1"}
"""Change when equal text would be packed otherwise, so that older shards are not taken for these."""


class UnitResult(BaseModel):
    """What became of a unit."""

    heldout: ShardRecord | None
    """Of the unit that gives its source's held-out rows."""
    train: list[ShardRecord]
    removed: dict[str, Removed]

    @property
    def shards(self) -> list[ShardRecord]:
        return [*([self.heldout] if self.heldout else []), *self.train]


def pack_unit(unit: Unit, options: PackOptions, encoder: DocumentEncoder) -> UnitResult:
    """Pack a unit, or find it packed. Of a source with `max_tokens`, no more than that is packed.

    Raises:
        ValueError: the source is unreadable; see `read_unit`.
    """
    receipt = options.receipt(unit, encoder.identity)
    if receipt.exists():
        result = UnitResult.model_validate_json(receipt.read_text(encoding="utf-8"))
        if all(is_whole(options.directory, shard) for shard in result.shards):
            return result
    cleaner = open_cleaner(unit, options)
    heldout: ShardRecord | None = None
    train: list[ShardRecord] = []
    for number, window in enumerate(windows(kept_documents(unit, options, cleaner), options.unit_bytes)):
        documents = shuffled(unit.source, window, options.seed)
        if unit.holds_out and number == 0:
            heldout, documents = hold_out(unit.source.name, documents, options, encoder)
        for part in split_parts(documents, options.bytes_per_shard):
            if reached(train, unit.source.max_tokens):
                break
            train.append(pack_part(unit.source.name, part, options, encoder))
        if reached(train, unit.source.max_tokens):
            break
    result = UnitResult(heldout=heldout, train=train, removed=cleaner.removed)
    write_json(receipt, result.model_dump(mode="json"))
    return result


def open_cleaner(unit: Unit, options: PackOptions) -> Cleaner:
    """The cleaner of a unit."""
    words = options.evaluation_words
    return Cleaner(unit.source, EvaluationRuns(options.evaluation_runs, words) if words else None)


def kept_documents(unit: Unit, options: PackOptions, cleaner: Cleaner) -> Iterator[Document]:
    """The documents of a unit that are kept and are no duplicates."""
    documents = read_unit(unit, Path(options.cache), options.on_bad_input, cleaner)
    if not options.duplicates:
        yield from documents
        return
    for document, is_duplicate in zip(documents, np.load(options.mask(unit)), strict=True):
        if is_duplicate:
            cleaner.remove("duplicate", f"{document.file}#{document.index}", len(document.text))
        else:
            yield document


def windows(documents: Iterable[Document], unit_bytes: int) -> Iterator[list[Document]]:
    """Consecutive documents whose text just reaches `unit_bytes`; at least one window, which may be empty."""
    window: list[Document] = []
    num_bytes, num_windows = 0, 0
    for document in documents:
        window.append(document)
        num_bytes += document.num_bytes
        if num_bytes >= unit_bytes:
            yield window
            window, num_bytes, num_windows = [], 0, num_windows + 1
    if window or not num_windows:
        yield window


def hold_out(
    source: str, documents: list[Document], options: PackOptions, encoder: DocumentEncoder
) -> tuple[ShardRecord | None, list[Document]]:
    """Pack the first documents as the source's held-out rows.

    A document longer than a row gives one piece of it, drawn by the seed, so that the rows come from many documents; the rest of
    it is not trained on.

    Returns:
        The shard and the documents that are left; None and all documents where they would not leave anything to train on.
    """
    needed = options.heldout_rows * options.sequence_length
    held: list[Encoded] = []
    num_tokens, num_cut = 0, 0
    for document in documents:
        encoded = encoder.encode_documents([document.text])
        held.append(draw_piece(encoded, options.sequence_length, document_key(source, document, options.seed)))
        num_tokens += len(held[-1].tokens[0])
        num_cut += len(held[-1].tokens[0]) < len(encoded.tokens[0])
        if num_tokens >= needed:
            break
    if num_tokens < needed or len(held) == len(documents):
        return None, documents
    marks = [mark for piece in held for mark in piece.marks or []]
    together = Encoded([tokens for piece in held for tokens in piece.tokens], marks or None)
    name = shard_name(source, "heldout", [document.text for document in documents[: len(held)]], options, encoder.identity)
    found = find_shard(options.directory, name)
    shard = found or write_shard(options.directory, name, best_fit(together, options).first(options.heldout_rows, num_cut))
    return shard, documents[len(held) :]


def draw_piece(document: Encoded, sequence_length: int, key: bytes) -> Encoded:
    """A short document whole; of a longer one, one of its full rows, chosen by `key`; of a conversation the first."""
    [tokens] = document.tokens
    if len(tokens) <= sequence_length:
        return document
    number = 0 if document.marks else int.from_bytes(key, "big") % (len(tokens) // sequence_length)
    piece = slice(number * sequence_length, (number + 1) * sequence_length)
    return Encoded([tokens[piece]], [document.marks[0][piece]] if document.marks else None)


def split_parts(documents: list[Document], limit: int) -> Iterator[list[Document]]:
    """Group documents, in order, into parts whose text just reaches `limit` bytes."""
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += document.num_bytes
        if size >= limit:
            yield part
            part, size = [], 0
    if part:
        yield part


def reached(shards: list[ShardRecord], max_tokens: int | None) -> bool:
    """Whether the shards hold as many tokens as are asked for."""
    return max_tokens is not None and sum(shard.num_tokens for shard in shards) >= max_tokens


def up_to(shards: list[ShardRecord], max_tokens: int | None) -> list[ShardRecord]:
    """The first shards, up to the one with which they reach `max_tokens`."""
    kept: list[ShardRecord] = []
    for shard in shards:
        if reached(kept, max_tokens):
            break
        kept.append(shard)
    return kept


def units_wanted(units: list[Unit], results: list[UnitResult], options: PackOptions) -> list[Unit]:
    """The next units of a source whose first ones gave `results`.

    One at a time until held-out rows are found, then all, or about as many as the source's `max_tokens` asks for.

    Raises:
        ValueError: there are no more units, and none gave the held-out rows.
    """
    left = units[len(results) :]
    if not any(result.heldout for result in results):
        if not left:
            raise ValueError(describe_shortage(units[0].source.name, results, options))
        return [left[0].model_copy(update={"holds_out": True})]
    return left[: count_needed(left, sum(shard.num_tokens for result in results for shard in result.train))]


def count_needed(units: list[Unit], num_tokens: int = 0) -> int:
    """How many of the units bring their source from `num_tokens` to about its `max_tokens`; all where it has none."""
    count = 0
    for unit in units:
        if unit.source.max_tokens is not None and num_tokens >= unit.source.max_tokens:
            break
        num_tokens += max(unit.num_bytes // BYTES_PER_TOKEN, 1)
        count += 1
    return count


def describe_shortage(source: str, results: list[UnitResult], options: PackOptions) -> str:
    """What a source lacks for its held-out rows."""
    num_documents = sum(shard.num_documents for result in results for shard in result.train)
    removed = merge_removed(result.removed for result in results)
    left_out = ", ".join(f"{count.documents} {reason}" for reason, count in removed.items()) or "none"
    return (
        f"source {source}: {num_documents} documents (left out: {left_out}) do not fill {options.heldout_rows} held-out rows of "
        f"{options.sequence_length} tokens and leave anything to train on; lower heldout_rows or name more text"
    )


def pack_part(source: str, documents: list[Document], options: PackOptions, encoder: DocumentEncoder) -> ShardRecord:
    """Pack documents as one shard, or find it packed."""
    texts = [document.text for document in documents]
    name = shard_name(source, "train", texts, options, encoder.identity)
    found = find_shard(options.directory, name)
    return found or write_shard(options.directory, name, pack_rows(encoder.encode_documents(texts), options))


def pack_rows(documents: Encoded, options: PackOptions) -> PackedRows:
    """Tokenized documents as rows, by the method of the options."""
    if options.packing == "best_fit":
        return best_fit(documents, options)
    return concatenate(documents.tokens, options.sequence_length, options.tokenizer.document_end_id)


def best_fit(documents: Encoded, options: PackOptions) -> PackedRows:
    """Tokenized documents as rows, packed best-fit."""
    return pack(documents.tokens, options.sequence_length, options.tokenizer.document_end_id, documents.marks)


def shard_name(source: str, split: Split, texts: Iterable[str], options: PackOptions, encoder: str) -> str:
    """`<source>-<split>-<hash>`: the hash of the text and of everything else that the shard depends on; `encoder` is its identity."""
    facts = [*options.tokenizer.model_dump().values(), encoder]
    stated = [METHODS[options.packing], source, split, options.sequence_length, *facts, options.seed]
    digest = hashlib.sha256("\0".join(map(str, stated)).encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"{source}-{split}-{digest.hexdigest()[:20]}"
