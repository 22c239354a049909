"""A packed corpus opened for reading: rows by source and number, from shards that are mapped into memory.

A shard is compared with its recorded hash when it is first read. Rows of a stream lie all over the corpus, so many shards are in use
at once; those that were used least lately are let go, since each holds a file descriptor.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wfray.data.batch import RESPONSE
from wfray.data.shards import ShardRecord, Split, SplitIndex, check_shard, read_index

DTYPES = {"I32": np.int32, "I16": np.int16, "U8": np.uint8}
"""Of a safetensors header."""
MOST_MAPPED = 256
"""Shards that a corpus keeps mapped: each holds a file descriptor, of which a process often has no more than 1,024."""


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a shard, mapped into memory and read as they are touched."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    length = int(content[:8].view(np.uint64)[0])
    header = json.loads(content[8 : 8 + length].tobytes())
    arrays = {}
    for name in header.keys() - {"__metadata__"}:
        start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
        arrays[name] = content[start:stop].view(DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
    return arrays


@dataclass(frozen=True)
class StoredRows:
    """Rows as they were packed, N of them."""

    input_ids: NDArray[np.int32]
    """[N, S]."""
    segment_ids: NDArray[np.int16]
    """[N, S]; 1.. per piece in its row, 0 is padding."""
    marks: NDArray[np.uint8]
    """[N, S]; what each token is to the loss (see `wfray.data.batch`)."""


class PackedCorpus:
    """A packed corpus opened for reading."""

    def __init__(self, directory: Path) -> None:
        """Open the corpus in `directory`; shards are opened, and their hashes compared, when first read.

        Raises:
            ValueError: there is no whole corpus: the index or a shard is missing, or of another format.
        """
        self.directory = directory
        self.index = read_index(directory)
        self._sources = {source.name: source for source in self.index.sources}
        self._checked: set[str] = set()
        self._arrays: OrderedDict[str, dict[str, NDArray[Any]]] = OrderedDict()
        self._starts: dict[tuple[str, Split], list[int]] = {}

    @property
    def source_names(self) -> list[str]:
        """In the order that `source_ids` count."""
        return list(self._sources)

    @property
    def weights(self) -> dict[str, float]:
        """The shares that the corpus was packed with."""
        return {source.name: source.weight for source in self.index.sources}

    def split(self, source: str, split: Split) -> SplitIndex:
        """The shards of one split.

        Raises:
            ValueError: there is no such source.
        """
        if source not in self._sources:
            raise ValueError(f"the corpus {str(self.directory)!r} has no source {source!r}; it has: {', '.join(self._sources)}")
        return self._sources[source].splits[split]

    def require_tokenizer(self, sha256: str) -> None:
        """Raise `ValueError` unless the corpus was packed with the tokenizer of this hash (see `tokenizer_sha256`)."""
        if sha256 != self.index.tokenizer_sha256:
            raise ValueError(
                f"the corpus {str(self.directory)!r} was packed with another tokenizer ({self.index.tokenizer_sha256[:12]}) than "
                f"the model's ({sha256[:12]}): pack it with the model's tokenizer, or take the model that it was packed for"
            )

    def read_rows(self, source: str, split: Split, numbers: Iterable[int]) -> StoredRows:
        """Rows of one source by number; see `read`."""
        return self.read(split, [(source, number) for number in numbers])

    def read(self, split: Split, chosen: Sequence[tuple[str, int]]) -> StoredRows:
        """Rows of one split, each by source and number.

        Raises:
            ValueError: there is no such source or row, or a shard was altered after it was written.
        """
        shape = (len(chosen), self.index.sequence_length)
        rows = StoredRows(np.empty(shape, np.int32), np.empty(shape, np.int16), np.full(shape, RESPONSE, np.uint8))
        for index, (source, number) in enumerate(chosen):
            shard, row = self._locate(source, split, number)
            for name, array in self._open(shard).items():
                getattr(rows, name)[index] = array[row]
        return rows

    def verify(self) -> None:
        """Compare every shard with its recorded hash; raises `ValueError` naming the first that differs."""
        for source in self.index.sources:
            for split in source.splits.values():
                for shard in split.shards:
                    check_shard(self.directory, shard)

    def _locate(self, source: str, split: Split, number: int) -> tuple[ShardRecord, int]:
        shards = self.split(source, split).shards
        if (source, split) not in self._starts:
            self._starts[source, split] = [0, *accumulate(shard.num_rows for shard in shards)]
        starts = self._starts[source, split]
        if not 0 <= number < starts[-1]:
            raise ValueError(f"source {source} has {starts[-1]} {split} rows, so none of number {number}")
        shard = bisect_right(starts, number) - 1
        return shards[shard], number - starts[shard]

    def _open(self, shard: ShardRecord) -> dict[str, NDArray[Any]]:
        if shard.file not in self._checked:
            check_shard(self.directory, shard)
            self._checked.add(shard.file)
        if shard.file not in self._arrays:
            self._arrays[shard.file] = map_arrays(self.directory / shard.file)
            if len(self._arrays) > MOST_MAPPED:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(shard.file)
        return self._arrays[shard.file]
