"""Answers kept on disk or in object storage, so that a second epoch, a second student or a resumed run asks for nothing twice.

An entry is one row of one wire, named by a hash of the teacher's fingerprint, of what the wire was asked with, and of the row's tokens,
positions and segments: how rows were put into batches does not matter. With a cache, the signals of a row are those of the first
pass that it was in; in other company its last bits might differ.

Entries are written whole or not at all and carry a checksum (see `compact`); a damaged one is deleted, reported and counts as not
there. When entries take more than the limit the least recently used go, a tenth of the limit at once. Several replicas
may share a directory: each lists it anew after having written a twentieth of the limit, so it may be exceeded by so much a replica.
A hit renews an entry's time on local disks; object stores have no such time, there the oldest go.
"""

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from wfray.config.teacher import SignalCache, Wire
from wfray.teacher.compact import DamagedEntry, pack_entry, unpack_entry
from wfray.teacher.meter import Meter
from wfray.teacher.rows import WIRE_OF, Arrays, take_rows
from wfray.teacher.signals import SignalRequest

SUFFIX = ".signal"
KEEP_AFTER_EVICTION, LIST_AGAIN_AFTER = 0.9, 0.05
ABANDONED_SECONDS = 600.0
"""A file aside that is older was left by a replica that was killed."""
"""Of the limit."""


class SignalStore:
    """The entries of one teacher. Safe to use from several threads and processes."""

    def __init__(self, config: SignalCache, fingerprint: str, meter: Meter) -> None:
        """Find the place of the entries; `fingerprint` names the teacher.

        Raises:
            ValueError: the URL's file system is not installed.
        """
        try:
            self.filesystem, self.root = url_to_fs(config.path)
        except (ImportError, ValueError) as error:
            raise ValueError(f"cache.path {config.path!r} cannot be opened: {error}; the extra `remote` has s3:// and gs://") from None
        self.fingerprint, self.meter, self.max_bytes = fingerprint, meter, int(config.max_gb * 2**30)
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self.lock = threading.Lock()
        self.num_bytes = sum(size for _, size, _ in self._entries())
        self.written_since_listing = 0

    def read(self, batch: Arrays, request: SignalRequest) -> list[Arrays | None]:
        """Each row's answer, or None where part of it is not there."""
        keys = [self._paths(batch, row, request) for row in range(len(batch["input_ids"]))]
        rows = [self._read_row(paths) for paths in keys]
        found = sum(row is not None for row in rows)
        self.meter.add("cache_hits", found)
        self.meter.add("cache_misses", len(rows) - found)
        return rows

    def write(self, batch: Arrays, request: SignalRequest, answer: Arrays) -> None:
        """Keep the answer to a batch, row by row."""
        for row in range(len(batch["input_ids"])):
            one = take_rows(answer, [row])
            for wire, path in self._paths(batch, row, request).items():
                self._write(path, pack_entry({name: array for name, array in one.items() if WIRE_OF[name] == wire}))
        with self.lock:
            if self.num_bytes > self.max_bytes or self.written_since_listing > LIST_AGAIN_AFTER * self.max_bytes:
                self._evict()

    def _paths(self, batch: Arrays, row: int, request: SignalRequest) -> dict[Wire, str]:
        """Where the entries of a row are, wire by wire."""
        of_row = hashlib.sha256()
        for name in ("input_ids", "position_ids", "segment_ids"):
            of_row.update(batch[name][row].astype("<i4").tobytes())
        paths: dict[Wire, str] = {}
        for wire in request.wires:
            key = hashlib.sha256(f"{request.only(wire).model_dump_json()}\0{of_row.hexdigest()}".encode()).hexdigest()
            paths[wire] = f"{self.root}/{self.fingerprint}/{wire}/{key[:2]}/{key[2:]}{SUFFIX}"
        return paths

    def _read_row(self, paths: dict[Wire, str]) -> Arrays | None:
        row: Arrays = {}
        for path in paths.values():
            entry = self._read(path)
            if entry is None:
                return None
            row.update(entry)
        return row

    def _read(self, path: str) -> Arrays | None:
        try:
            entry = self.filesystem.cat_file(path)
        except FileNotFoundError:
            return None
        try:
            arrays = unpack_entry(entry)
        except DamagedEntry:
            self.meter.add("cache_damaged")
            print(f"cache entry {path} is damaged: it is deleted and made again", flush=True)
            self._delete(path)
            return None
        if self.is_local:
            self._touch(path)
        return arrays

    def _write(self, path: str, entry: bytes) -> None:
        """Whole or not at all: a put to an object store is; on a disk it is a renaming."""
        aside = f"{path}.{uuid.uuid4().hex}" if self.is_local else path
        self.filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.filesystem.pipe_file(aside, entry)
        if self.is_local:
            os.replace(aside, path)
        with self.lock:
            self.num_bytes += len(entry)
            self.written_since_listing += len(entry)

    def _touch(self, path: str) -> None:
        try:
            os.utime(path)
        except FileNotFoundError:
            pass  # Another replica has just evicted it.

    def _delete(self, path: str) -> None:
        try:
            self.filesystem.rm_file(path)
        except FileNotFoundError:
            pass  # Another replica was faster.

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        """(time, bytes, path) of every entry below the root, other teachers' too: the limit is one for all."""
        if not self.filesystem.exists(self.root):
            return
        self.filesystem.invalidate_cache()
        for path, info in self.filesystem.find(self.root, detail=True).items():
            if path.endswith(SUFFIX):
                yield seconds_of(info), info["size"], path
            elif f"{SUFFIX}." in path and seconds_of(info) < time.time() - ABANDONED_SECONDS:
                self._delete(path)

    def _evict(self) -> None:
        entries = sorted(self._entries())
        self.num_bytes, self.written_since_listing = sum(size for _, size, _ in entries), 0
        if self.num_bytes <= self.max_bytes:
            return
        for _, size, path in entries:
            if self.num_bytes <= KEEP_AFTER_EVICTION * self.max_bytes:
                break
            self._delete(path)
            self.num_bytes -= size


def seconds_of(info: dict) -> float:
    """When a file was last changed, as its file system tells it: every one has its own name for it."""
    when = info.get("mtime") or info.get("LastModified") or info.get("updated") or info.get("created") or 0.0
    return float(when) if isinstance(when, int | float) else float(when.timestamp())
