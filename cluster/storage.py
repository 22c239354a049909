"""Runs and models in object storage: what a pod leaves behind, and what the next one begins with.

    URL/objects/<sha256>        contents, each once
    URL/index.json              path -> sha256 of one moment, written last

The index names only contents that are there already, so a push that dies in the middle leaves the moment before. Manifests are
read before anything else: what they call complete is then found by the walk that follows. Contents that no index names go last.
"""

import json
import os
import threading
import time
from pathlib import Path

import fsspec

from wfray.runs import sha256_of, write_aside

PUSH_SECONDS = 300.0
SKIPPED = (".partial", "/ray/", "/wandb/")
"""Half-written files, Ray's own bookkeeping, W&B's."""


class Mirror:
    """One directory and its place in object storage."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.files, self.root = fsspec.core.url_to_fs(url)
        self.hashes: dict[str, tuple[tuple[int, int], str]] = {}

    def push(self) -> int:
        """Send what is new and forget what is gone; the number of contents sent."""
        index = {name: digest for name in self.local() if (digest := self.hash_of(name))}
        self.files.makedirs(f"{self.root}/objects", exist_ok=True)
        there = self.objects()
        new = {digest: name for name, digest in index.items() if digest not in there}
        for digest, name in new.items():
            if self.send(name, digest) is None:
                index = {path: value for path, value in index.items() if value != digest}
        self.files.pipe_file(f"{self.root}/index.json", json.dumps(index).encode())
        for digest in there - set(index.values()):
            self.files.rm_file(f"{self.root}/objects/{digest}")
        return len(new)

    def pull(self) -> int:
        """Fetch every file of the last push that is not here; their number."""
        missing = {name: digest for name, digest in self.index().items() if not (self.directory / name).exists()}
        for name, digest in missing.items():
            target = self.directory / name
            if not target.resolve().is_relative_to(self.directory.resolve()):
                raise ValueError(f"{self.root}/index.json names {name!r}, outside the directory of runs: it was not made by this project")
            with write_aside(target) as aside:
                self.files.get_file(f"{self.root}/objects/{digest}", str(aside))
                if sha256_of(aside) != digest:
                    raise ValueError(f"{self.root}/objects/{digest} is damaged: {name} cannot be restored from it")
        return len(missing)

    def local(self) -> list[str]:
        """What is here, manifests first."""
        paths = [str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file() and not path.is_symlink()]
        manifests = [str(path.relative_to(self.directory)) for path in self.directory.rglob("manifest.json")]
        return [*manifests, *sorted(name for name in set(paths) - set(manifests) if not any(part in f"/{name}" for part in SKIPPED))]

    def hash_of(self, name: str) -> str | None:
        """SHA-256 of a file, remembered while size and time of change stay; None where it is gone meanwhile."""
        path = self.directory / name
        try:
            state = os.stat(path)
            stamp = (state.st_size, state.st_mtime_ns)
            if name not in self.hashes or self.hashes[name][0] != stamp:
                self.hashes[name] = (stamp, sha256_of(path))
        except FileNotFoundError:
            return None
        return self.hashes[name][1]

    def send(self, name: str, digest: str) -> str | None:
        """Send a content; None where the file has changed since it was hashed, and comes with the next push."""
        place = f"{self.root}/objects/{digest}"
        try:
            self.files.put_file(str(self.directory / name), place)
        except FileNotFoundError:
            return None
        if self.hash_of(name) == digest:
            return digest
        self.files.rm_file(place)
        return None

    def index(self) -> dict[str, str]:
        """Of the last push; empty where there was none."""
        path = f"{self.root}/index.json"
        return json.loads(self.files.cat_file(path)) if self.files.exists(path) else {}

    def objects(self) -> set[str]:
        """The contents that are there."""
        place = f"{self.root}/objects"
        return {name.rpartition("/")[2] for name in self.files.ls(place, detail=False, refresh=True)} if self.files.exists(place) else set()


def keep_mirrored(directory: Path, url: str) -> Mirror:
    """Fetch what is missing, then push every five minutes, in a thread that ends with this process."""
    mirror = Mirror(directory, url)
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{mirror.pull()} files of runs restored from {url}", flush=True)

    def run() -> None:
        while True:
            time.sleep(PUSH_SECONDS)
            print_outcome(mirror)

    threading.Thread(target=run, name="mirror", daemon=True).start()
    return mirror


def print_outcome(mirror: Mirror) -> None:
    """Push once; storage that does not answer is tried again at the next time, and said."""
    try:
        print(f"runs mirrored: {mirror.push()} new contents", flush=True)
    except OSError as error:
        print(f"runs could not be mirrored: {error}", flush=True)
