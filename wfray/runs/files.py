"""Files that are whole or absent: written aside, flushed to disk, then renamed."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` when the block succeeds, delete it when it fails.

    The caller creates a file or a directory at the yielded path. An existing directory at `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may have one number.
    aside = target.with_name(f".{target.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        flush_tree(aside)
        if target.is_dir():
            remove(target)
        os.replace(aside, target)
    finally:
        remove(aside)


def remove_partials(directory: Path) -> None:
    """Delete what an interrupted `write_aside` left in `directory`."""
    for path in directory.glob(".*.partial-*"):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file or directory tree if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_tree(path: Path) -> None:
    """fsync a file, or every file below a directory."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        flush(file)


def flush(path: Path) -> None:
    """fsync one file, or the names in one directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with write_aside(target) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file; of a directory: of the sorted relative names and hashes of its files."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    digest, files = hashlib.sha256(), files_below(path)
    with ThreadPoolExecutor() as pool:
        for file, content_hash in zip(files, pool.map(sha256_of, files), strict=True):
            digest.update(f"{file.relative_to(path)}\0{content_hash}\n".encode())
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in files_below(path))


def files_below(path: Path) -> list[Path]:
    """The files of a directory, sorted, but for what Python compiles beside modules when they are imported."""
    return sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.relative_to(path).parts)
