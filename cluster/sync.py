"""`wf sync`: the working directory to a development host, over SSH with rsync.

Files there that are no longer here are deleted, so the directory there must be new or one that `wf sync` made for the same owner, which a
marker in it tells. With `--smart` nothing is sent when the checksum of the tree is that of the last time, or while a watcher runs.
"""

import argparse
import fcntl
import fnmatch
import hashlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.identity import Owner, home, me, require_owner
from cluster.reach import OPTIONS
from cluster.sync_config import SyncConfig, read_sync_config
from cluster.workdir import git
from wfray.runs import sha256_of, write_json

MARKER = ".wfray-sync"
WATCH_SECONDS = 1.0


def main(argv: list[str]) -> None:
    """`wf sync [status] [HOST] [--smart | --watch] [--dry-run] [--json]`."""
    parser = argparse.ArgumentParser(
        prog="wf sync", description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="[status] [HOST]", help="a host of .sync.conf")
    parser.add_argument("--smart", action="store_true", help="send nothing when nothing changed or a watcher runs")
    parser.add_argument("--watch", action="store_true", help="send whatever changes, until Ctrl-C")
    parser.add_argument("--dry-run", action="store_true", help="print the command, and what it would send")
    parser.add_argument("--json", action="store_true", help="status as JSON")
    arguments = parser.parse_args(argv)
    words = [word for word in arguments.words if word != "status"]
    sync = Sync(read_sync_config(Path.cwd()), words[0] if words else None)
    if len(words) < len(arguments.words):
        print(json.dumps(sync.status()) if arguments.json else "\n".join(f"{key}: {value}" for key, value in sync.status().items()))
    elif arguments.watch:
        sync.watch()
    else:
        print(sync.once(smart=arguments.smart, dry_run=arguments.dry_run))


class Sync:
    """One project and one host."""

    def __init__(self, config: SyncConfig, host: str | None) -> None:
        self.config, self.host = config, config.host(host)
        key = hashlib.sha256(f"{config.root.resolve()}\0{self.host.address}\0{self.host.path}".encode()).hexdigest()[:16]
        self.record, self.lock = home() / "sync" / f"{key}.json", home() / "sync" / f"{key}.lock"

    def once(self, smart: bool, dry_run: bool) -> str:
        """Send what differs; what was done, in a line.

        Raises:
            ValueError: the host does not answer, or its directory is somebody else's or was not made by `wf sync`.
        """
        checksum = self.checksum()
        if smart and self.is_watched:
            return "a watcher is active: nothing sent"
        if smart and self.known().get("checksum") == checksum:
            return "unchanged: nothing sent"
        if dry_run:
            return f"{shlex.join(self.command())}\n{self.run(self.command('--dry-run', '--itemize-changes'))}"
        self.require_ours()
        output = self.run(self.command("--itemize-changes"))
        files = [line for line in output.splitlines() if line.startswith(("<f", "*deleting"))]
        write_json(
            self.record, {"checksum": checksum, "time": time.time(), "files": len(files), "host": self.host.address, "path": self.host.path}
        )
        return f"{len(files)} files sent or deleted"

    def watch(self) -> None:
        """Send changes as they come, until interrupted; `ValueError` where another watcher is active."""
        with self.watching():
            last = None
            while True:
                if (checksum := self.checksum()) != last:
                    print(self.once(smart=False, dry_run=False), flush=True)
                    last = checksum
                time.sleep(WATCH_SECONDS)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold the watcher's lock, which ends with the process."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"a watcher of {self.host.name} is active already") from None
            yield

    @property
    def is_watched(self) -> bool:
        """Whether a watcher is active."""
        if not self.lock.exists():
            return False
        with self.lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def status(self) -> dict[str, Any]:
        """Host, last time, whether anything changed since, whether a watcher is active."""
        known = self.known()
        return {
            "host": self.host.address,
            "path": self.host.path,
            "last_sync": known.get("time"),
            "changed": known.get("checksum") != self.checksum(),
            "watcher": self.is_watched,
        }

    def known(self) -> dict[str, Any]:
        """What was remembered last time."""
        return json.loads(self.record.read_text(encoding="utf-8")) if self.record.exists() else {}

    def checksum(self) -> str:
        """SHA-256 of names, modes and contents of everything that is sent."""
        digest = hashlib.sha256()
        for name in self.files():
            path = self.config.root / name
            digest.update(f"{name}\0{os.stat(path).st_mode}\0{sha256_of(path)}\n".encode())
        return digest.hexdigest()

    def files(self) -> list[str]:
        """What is sent: what git does not ignore, without what always stays."""
        listed = git(self.config.root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        names = (
            listed.split("\0") if listed is not None else [str(path.relative_to(self.config.root)) for path in self.config.root.rglob("*")]
        )
        return sorted(name for name in names if name and (self.config.root / name).is_file() and not self.is_kept(name))

    def is_kept(self, name: str) -> bool:
        """Whether a file stays here, in rsync's sense."""
        parts = name.split("/")
        for pattern in self.config.excludes:
            bare = pattern.rstrip("/")
            candidates = parts[:-1] if pattern.endswith("/") else parts
            if fnmatch.fnmatch(name, bare) or any(fnmatch.fnmatch(part, bare) for part in candidates):
                return True
        return False

    def command(self, *options: str) -> list[str]:
        """rsync, exactly as it runs."""
        excludes = [f"--exclude={pattern}" for pattern in (MARKER, *self.config.excludes)]
        ignored = ["--filter=:- .gitignore"]
        shell = f"--rsh={shlex.join(['ssh', *self.ssh_options()])}"
        return [
            "rsync",
            "-rlptz",
            "--delete",
            # Times to the nanosecond: an edit within the second of the last sending may leave the size as it was.
            "--modify-window=-1",
            *options,
            *excludes,
            *ignored,
            shell,
            f"{self.config.root}/",
            f"{self.host.address}:{self.host.path}/",
        ]

    def ssh_options(self) -> list[str]:
        """Port and key of the host."""
        port = ["-p", str(self.host.port)] if self.host.port else []
        return [*OPTIONS, *port, *(["-i", os.path.expanduser(self.host.key)] if self.host.key else [])]

    def require_ours(self) -> None:
        """Make the directory there, or see that it is this owner's."""
        place = shlex.quote(self.host.path)
        look = f'if [ -e {MARKER} ]; then cat {MARKER}; elif [ -z "$(ls -A)" ]; then echo new; else echo foreign; fi'
        script = f"mkdir -p {place} && cd {place} && {look}"
        answer = self.run(["ssh", *self.ssh_options(), self.host.address, script]).strip()
        where = f"{self.host.address}:{self.host.path}"
        if answer == "foreign":
            raise ValueError(f"{where} holds files that wf sync did not send, and would delete: choose a new directory")
        if answer == "new":
            marker = shlex.quote(me().model_dump_json())
            self.run(["ssh", *self.ssh_options(), self.host.address, f"printf %s {marker} > {place}/{MARKER}"])
        else:
            require_owner(Owner.model_validate_json(answer), where, "send files there")

    def run(self, command: list[str]) -> str:
        """The output; `ValueError` with the last line of the error where it fails."""
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no answer"]
            raise ValueError(f"{command[0]} to {self.host.address} failed: {lines[-1] if command[0] == 'ssh' else lines[0]}")
        return result.stdout
