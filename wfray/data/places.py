"""Where the files of a source are: a file system that fsspec knows, a root in it, and the files below it that the globs choose.

Local folders, `s3://`, `gs://`, `memory://` and the Hugging Face Hub (`hf://`) are all read through fsspec. A file is named
relative to its source's root, so names, orders and shards depend on no machine's paths.
"""

import glob
import hashlib
import sysconfig
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from wfray.config.data import (
    DebianFiles,
    HubFiles,
    JsonLines,
    PackageDocstrings,
    PackageFiles,
    PackageJson,
    Parquet,
    ReleaseFiles,
    Source,
    StandardLibrary,
    TextFiles,
)
from wfray.data.packages import package_directory, unpacked_directory

INSTALLED = ["site-packages/*", "dist-packages/*"]


@dataclass(frozen=True)
class Place:
    """The root of a source."""

    filesystem: AbstractFileSystem
    root: str
    """Without a trailing slash."""

    def path(self, file: str) -> str:
        """The full path of a file of the source."""
        return f"{self.root}/{file}"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    name: str
    """Relative to the source's root."""
    num_bytes: int
    state: str
    """A hash of what the file system says of it (size, time of change, tag): differs when the file was changed."""


def list_files(source: Source, cache: Path) -> list[SourceFile]:
    """The source's files, by name.

    Raises:
        ValueError: a package, folder or URL is missing, or no file matches.
    """
    place = find_place(source, cache)
    excluded = [*INSTALLED, *source.exclude] if isinstance(source, StandardLibrary) else getattr(source, "exclude", [])
    found = place.filesystem.glob(f"{glob.escape(place.root)}/{pattern_of(source)}", detail=True)
    names = {path.removeprefix(place.root).lstrip("/"): path for path in found}
    kept = {name: path for name, path in names.items() if not any(fnmatch(name, pattern) for pattern in excluded)}
    infos = {name: followed(source, place.filesystem, path, found[path]) for name, path in kept.items()}
    files = [
        SourceFile(name=name, num_bytes=info["size"] or 0, state=state_of(info)) for name, info in infos.items() if info["type"] == "file"
    ]
    if not files:
        raise ValueError(f"source {source.name}: no file matches in {place.root!r}; correct path, glob or exclude")
    return sorted(files, key=lambda file: file.name)


def followed(source: Source, filesystem: AbstractFileSystem, path: str, info: dict[str, Any]) -> dict[str, Any]:
    """What a listing says of a file; of a link, what it leads to: a snapshot of the Hub is a folder of links."""
    if not info.get("islink"):
        return info
    try:
        return dict(filesystem.info(path))
    except FileNotFoundError:
        raise ValueError(f"source {source.name}: the link {path!r} leads nowhere; delete it, or name it in exclude") from None


def state_of(info: dict[str, object]) -> str:
    """A hash of a file's properties but for those that change with the links to it."""
    changing = {"nlink", "created"} if "nlink" in info else set()
    stated = sorted((key, str(value)) for key, value in info.items() if key not in changing)
    return hashlib.sha256(repr(stated).encode()).hexdigest()[:16]


def find_place(source: Source, cache: Path) -> Place:
    """The root that the source's files are relative to.

    Args:
        source: where its files are.
        cache: the directory that releases and Debian packages were fetched into.

    Raises:
        ValueError: it is not there.
    """
    match source:
        case StandardLibrary():
            return local_place(Path(sysconfig.get_path("stdlib")))
        case PackageFiles() | PackageDocstrings() | PackageJson():
            return local_place(package_directory(source.package))
        case ReleaseFiles() | DebianFiles():
            return local_place(unpacked_directory(source, cache))
        case HubFiles():
            return open_place(source.name, f"{source.root}/{source.dataset}@{source.revision}")
        case JsonLines() | Parquet() | TextFiles():
            place = open_place(source.name, source.path)
            is_file = place.filesystem.isfile(place.root)
            return Place(place.filesystem, place.root.rpartition("/")[0]) if is_file else place


def pattern_of(source: Source) -> str:
    """The glob of the source's files, relative to its root."""
    match source:
        case PackageJson():
            return glob.escape(source.file)
        case JsonLines() | Parquet() | TextFiles():
            filesystem, root = url_to_fs(source.path)
            return glob.escape(root.rpartition("/")[2]) if filesystem.isfile(root) else source.glob
        case _:
            return source.glob


def local_place(directory: Path) -> Place:
    """A local directory."""
    return open_place("", str(directory))


def open_place(name: str, url: str) -> Place:
    """The place of a local path or URL; raises `ValueError` when it is missing or its file system is not installed."""
    try:
        filesystem, root = url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"source {name}: {url!r} cannot be opened: {error}; the extra `remote` has what s3:// and gs:// need") from None
    if not filesystem.exists(root):
        raise ValueError(f"source {name}: {url!r} does not exist; correct its path")
    return Place(filesystem, root.rstrip("/"))
