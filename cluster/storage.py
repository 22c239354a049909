"""Runs and models in object storage: what a pod leaves behind, and what the next one begins with.

    URL/objects/<sha256>        contents, each once
    URL/index.json              path -> sha256 of one moment, written last

A push takes minutes, and training replaces its checkpoint meanwhile. So it first holds the moment: a hard link to every file, made in
milliseconds, keeps what is then deleted; the few that grow in place are copied. Manifests are held before anything else is listed, so
that what they call complete is among the files that follow; where one changes or a file goes meanwhile, all is held again. The index
names only contents that are there already, so a push that dies in the middle leaves the moment before. Contents that no index names go
last.
"""

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import fsspec

from wfray.runs import sha256_of, write_aside
from wfray.runs.files import remove

PUSH_SECONDS = 300.0
HELD = ".mirror"
"""Where the moment that is sent is held, within the directory: hard links do not lead to another file system."""
SKIPPED = (".partial", "/ray/", "/wandb/", f"/{HELD}/")
"""Half-written files, Ray's own bookkeeping, W&B's, ours."""
MANIFEST, METRICS = "manifest.json", "metrics.jsonl"
HOLD_ATTEMPTS = 20


class Mirror:
    """One directory and its place in object storage."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.files, self.root = fsspec.core.url_to_fs(url)
        self.hashes: dict[str, tuple[tuple[int, int], str]] = {}
        self.pushing = threading.Lock()

    def push(self) -> int:
        """Send what is new and forget what is gone; the number of contents sent.

        Raises:
            OSError: files went faster than they could be held, or hard links cannot be made here.
        """
        held = self.directory / HELD
        with self.pushing:
            try:
                self.hold(held)
                return self.send(held)
            finally:
                remove(held)

    def hold(self, held: Path) -> None:
        """Make `held` a copy of the directory as it stands, of hard links."""
        for _ in range(HOLD_ATTEMPTS):
            remove(held)
            with suppress(FileNotFoundError):
                manifests = self.manifests()
                self.hold_files(manifests, held)
                self.hold_files(self.others(), held)
                if self.manifests() == manifests and all(os.path.samefile(self.directory / name, held / name) for name in manifests):
                    return
        raise OSError(f"files below {self.directory} came and went faster than they could be held, {HOLD_ATTEMPTS} times")

    def hold_files(self, names: list[str], held: Path) -> None:
        """Hold some files of the directory."""
        for name in names:
            hold_file(self.directory / name, held / name)

    def send(self, held: Path) -> int:
        """Send what is held: contents, then the index; a file that changed meanwhile stays there as it was before."""
        before = self.index()
        index = {str(path.relative_to(held)): self.hash_of(path) for path in sorted(held.rglob("*")) if path.is_file()}
        self.files.makedirs(f"{self.root}/objects", exist_ok=True)
        there = self.objects()
        new: dict[str, list[str]] = {}
        for name, digest in index.items():
            if digest not in there:
                new.setdefault(digest, []).append(name)
        for digest, names in new.items():
            if not any(self.send_content(held / name, digest) for name in names):
                print(f"{', '.join(names)}: written in place, not mirrored; write aside and rename, or end the name in .log", flush=True)
                for name in names:
                    del index[name]
                index |= {name: before[name] for name in names if name in before}
        self.files.pipe_file(f"{self.root}/index.json", json.dumps(index).encode())
        for digest in there - set(index.values()):
            self.files.rm_file(f"{self.root}/objects/{digest}")
        return len(new)

    def send_content(self, path: Path, digest: str) -> bool:
        """Send a held file; False, and nothing is there, where it is another by now."""
        place = f"{self.root}/objects/{digest}"
        self.files.put_file(str(path), place)
        if self.hash_of(path) == digest:
            return True
        self.files.rm_file(place)
        return False

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

    def manifests(self) -> list[str]:
        """The stages' manifests."""
        return [name for name in self.walk() if name.endswith(f"/{MANIFEST}")]

    def others(self) -> list[str]:
        """All other files."""
        return [name for name in self.walk() if not name.endswith(f"/{MANIFEST}")]

    def walk(self) -> list[str]:
        """The files that are here, relative, without links and what is skipped."""
        paths = (Path(top, name) for top, _, names in os.walk(self.directory) for name in names)
        found = (path.relative_to(self.directory).as_posix() for path in paths if not path.is_symlink())
        return sorted(name for name in found if not any(part in f"/{name}" for part in SKIPPED))

    def hash_of(self, path: Path) -> str:
        """SHA-256 of a held file, remembered while its name, size and time of change stay."""
        state = path.stat()
        stamp = (state.st_size, state.st_mtime_ns)
        name = str(path)
        if name not in self.hashes or self.hashes[name][0] != stamp:
            self.hashes[name] = (stamp, sha256_of(path))
        return self.hashes[name][1]

    def index(self) -> dict[str, str]:
        """Of the last push; empty where there was none."""
        path = f"{self.root}/index.json"
        return json.loads(self.files.cat_file(path)) if self.files.exists(path) else {}

    def objects(self) -> set[str]:
        """The contents that are there."""
        place = f"{self.root}/objects"
        return {name.rpartition("/")[2] for name in self.files.ls(place, detail=False, refresh=True)} if self.files.exists(place) else set()


def hold_file(path: Path, place: Path) -> None:
    """A hard link to a file, or a copy of one that is appended to; all others are renamed into their place and stay as they are."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.name == METRICS or path.suffix == ".log":
        shutil.copy2(path, place)
    else:
        os.link(path, place)


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
    """Push once; whatever fails is said and tried again at the next time: each storage has errors of its own for a network that is gone."""
    try:
        print(f"runs mirrored: {mirror.push()} new contents", flush=True)
    except Exception as error:
        print(f"runs could not be mirrored: {type(error).__name__}: {error}", flush=True)
