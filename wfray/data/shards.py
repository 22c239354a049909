"""The packed corpus on disk: immutable shards and one index.

`corpus.json` lists per source and split the shards in order, with SHA-256 and counts. A shard is a safetensors file with
`input_ids` int32 [N, S] and `segment_ids` int16 [N, S], and of conversations `marks` uint8 [N, S]; its name carries the hash of
everything that it was made from, so a shard that exists and is whole need never be made again. It is written aside and
renamed; its metadata hold the counts and a checksum of the arrays. The index is written last: a directory without it is no
corpus. Every shard's SHA-256 is compared with the index before its first row is read; rows are then copied out of the mapped
file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, computed_field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wfray.data.packing import PackedRows
from wfray.data.removed import Removed
from wfray.runs import remove, sha256_of, write_aside, write_json

FORMAT = 1
INDEX = "corpus.json"
WORK = "work"
"""Directory of what packing keeps for a resume; gone when the corpus is whole."""
Split = Literal["train", "heldout"]


class ShardRecord(BaseModel):
    """One shard and what it holds."""

    file: str
    """Relative to the corpus directory."""
    sha256: str
    num_rows: int
    num_tokens: int
    """Positions: rows x sequence length, padding included."""
    num_text_tokens: int
    """Positions that are not padding."""
    num_documents: int
    num_cut_documents: int
    """Documents longer than a row."""


class SplitIndex(BaseModel):
    """The shards of one split of one source, in order."""

    shards: list[ShardRecord]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_text_tokens(self) -> int:
        return sum(shard.num_text_tokens for shard in self.shards)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_cut_documents(self) -> int:
        return sum(shard.num_cut_documents for shard in self.shards)

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return self.num_text_tokens / self.num_tokens


class SourceIndex(BaseModel):
    """One source of the corpus."""

    name: str
    kind: str
    licence: str
    weight: float
    splits: dict[Split, SplitIndex]
    removed: dict[str, Removed] = {}
    """What was left out, by reason."""


class CorpusIndex(BaseModel):
    """The content of `corpus.json`."""

    format: int = FORMAT
    tokenizer_sha256: str
    vocab_size: int
    document_end_id: int
    """Ends each document, and fills padding."""
    sequence_length: int
    sources: list[SourceIndex]

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of names and shards: what a position in the corpus refers to. Weights are not part of it."""
        essence = [
            (source.name, split, [shard.sha256 for shard in source.splits[split].shards])
            for source in self.sources
            for split in sorted(source.splits)
        ]
        return hashlib.sha256(json.dumps(essence).encode()).hexdigest()


def write_shard(directory: Path, name: str, rows: PackedRows) -> ShardRecord:
    """Write `rows` as `shards/<name>.safetensors` under the corpus directory, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {"input_ids": rows.input_ids, "segment_ids": rows.segment_ids}
    if rows.marks is not None:
        arrays["marks"] = rows.marks
    counts = {
        "num_documents": rows.num_documents,
        "num_text_tokens": rows.num_text_tokens,
        "num_cut_documents": rows.num_cut_documents,
    }
    # One metadata entry: the order of several is not the same in every process, and equal rows must make equal files.
    metadata = {"wrinklefree": json.dumps({**counts, "arrays_sha256": arrays_sha256(arrays)})}
    with write_aside(shard_path(directory, name)) as aside:
        save_file(arrays, aside, metadata=metadata)
    return record_of(directory, name, rows.input_ids, counts)


def find_shard(directory: Path, name: str) -> ShardRecord | None:
    """The record of a shard that exists and is whole, else None."""
    path = shard_path(directory, name)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}
            counts = json.loads(file.metadata()["wrinklefree"])
    except SafetensorError:
        return None
    if counts.pop("arrays_sha256") != arrays_sha256(arrays):
        return None
    return record_of(directory, name, arrays["input_ids"], counts)


def shard_path(directory: Path, name: str) -> Path:
    """The file of shard `name`."""
    return directory / "shards" / f"{name}.safetensors"


def record_of(directory: Path, name: str, input_ids_NS: NDArray[np.int32], counts: dict[str, int]) -> ShardRecord:
    """The index entry of a written shard."""
    path = shard_path(directory, name)
    return ShardRecord(
        file=str(path.relative_to(directory)),
        sha256=sha256_of(path),
        num_rows=len(input_ids_NS),
        num_tokens=input_ids_NS.size,
        **counts,
    )


def arrays_sha256(arrays: dict[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def write_index(directory: Path, index: CorpusIndex) -> None:
    """Make the corpus whole: delete shards that the index does not list and what only packing needed, then write `corpus.json`."""
    remove(directory / WORK)
    listed = {shard.file for source in index.sources for split in source.splits.values() for shard in split.shards}
    for path in (directory / "shards").iterdir():
        if str(path.relative_to(directory)) not in listed:
            path.unlink()
    write_json(directory / INDEX, index.model_dump(mode="json"))


def is_whole(directory: Path, shard: ShardRecord) -> bool:
    """Whether the file is there with its recorded hash."""
    path = directory / shard.file
    return path.is_file() and sha256_of(path) == shard.sha256


def check_shard(directory: Path, shard: ShardRecord) -> None:
    """Raise `ValueError` unless the file has its recorded hash."""
    actual = sha256_of(directory / shard.file)
    if actual != shard.sha256:
        raise ValueError(
            f"shard {str(directory / shard.file)!r} was altered after it was written (SHA-256 {actual[:12]}, recorded "
            f"{shard.sha256[:12]}): delete it and run jobs.pack again"
        )


def read_index(directory: Path) -> CorpusIndex:
    """Read `corpus.json` and check that every shard is there."""
    path = directory / INDEX
    if not path.is_file():
        raise ValueError(f"{str(directory)!r} holds no {INDEX}: it is no packed corpus, or packing did not finish; run jobs.pack")
    try:
        index = CorpusIndex.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{str(path)!r} is not a corpus index: {error}; run jobs.pack again") from None
    if index.format != FORMAT:
        raise ValueError(f"{str(path)!r} is of format {index.format}, this version reads {FORMAT}; run jobs.pack again")
    for source in index.sources:
        for split in source.splits.values():
            for shard in split.shards:
                if not (directory / shard.file).is_file():
                    raise ValueError(f"shard {str(directory / shard.file)!r} of the index is missing; run jobs.pack again")
    return index
