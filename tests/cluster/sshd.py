"""A real sshd on loopback, without root's own: keys, configuration and log in a directory of the test's."""

import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from wfray.runs.children import free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def is_available() -> bool:
    """Whether openssh-server and rsync are installed."""
    return Path(SSHD).exists() and shutil.which("rsync") is not None


class Sshd:
    """It takes one key, and lets in the user who runs the test."""

    def __init__(self, directory: Path, home: Path | None = None) -> None:
        """Start it; `home` is the home directory of who logs in, the user's own by default."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port, self.key = directory, free_port(), directory / "key"
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
        shutil.copy(directory / "key.pub", directory / "authorized")
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {directory / 'host'}",
            f"AuthorizedKeysFile {directory / 'authorized'}",
            f"PidFile {directory / 'pid'}",
            "PasswordAuthentication no",
            "StrictModes no",
            "UsePAM no",
            *([f"SetEnv HOME={home}"] if home else []),
        ]
        (directory / "sshd_config").write_text("\n".join(lines) + "\n")
        Path("/run/sshd").mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        """And wait until it takes connections."""
        command = [SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        ends = time.monotonic() + 20
        while subprocess.run(["ssh-keyscan", "-p", str(self.port), "127.0.0.1"], capture_output=True, timeout=20).stdout == b"":
            assert time.monotonic() < ends, (self.directory / "log").read_text()

    def stop(self) -> None:
        """As when the network goes: open connections end too."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.terminate()
        self.process.wait()

    def ssh_config(self, host: str) -> Path:
        """A file for `ssh -F` by which `host` is this one."""
        path = self.directory / "ssh_config"
        path.write_text(
            f"Host {host}\n  HostName 127.0.0.1\n  Port {self.port}\n  IdentityFile {self.key}\n  StrictHostKeyChecking no\n"
            f"  UserKnownHostsFile {self.directory / 'known'}\n  LogLevel ERROR\n"
        )
        return path

    def program(self, directory: Path, host: str) -> None:
        """An `ssh` in `directory` that knows `host`, as SkyPilot makes the user's own ssh know its clusters."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "ssh"
        path.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.ssh_config(host)} "$@"\n')
        path.chmod(0o755)
