"""Ray on a node of a cloud cluster: kept running in the foreground of SkyPilot's job, within a time."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import IO

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
RESTART_SECONDS = 5.0


class Stopped(Exception):
    """Somebody asked this process to end."""


def raise_stopped(number: int, frame: FrameType | None) -> None:
    """A signal handler."""
    raise Stopped


def only_one(path: Path) -> IO[str]:
    """Hold `path` locked while the returned file lives; ends this process where another holds it: `sky launch` may be repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Ray is kept running here already", flush=True)
        sys.exit(0)
    return file


def keep_running(command: list[str], environment: dict[str, str], seconds: float, lonely_seconds: float | None = None) -> None:
    """Run `ray start --block` again and again until `seconds` are over, or SIGTERM comes; Ray ends with this process.

    Args:
        command: arguments of `ray`.
        environment: of Ray's processes.
        seconds: how long in all.
        lonely_seconds: give up when it cannot run for so long, as when its head is gone; None: never. A Ray whose head is gone
            ends within a minute or so: one that ran for a fifth of this time ran.
    """
    signal.signal(signal.SIGTERM, raise_stopped)
    ends, lonely_since = time.monotonic() + seconds, time.monotonic()
    try:
        while time.monotonic() < ends:
            began = time.monotonic()
            run_once(command, environment, ends - began)
            if time.monotonic() - began > (lonely_seconds or 0) / 5:
                lonely_since = time.monotonic()
            elif lonely_seconds and time.monotonic() - lonely_since > lonely_seconds:
                print(f"Ray could not run for {lonely_seconds:.0f} s: this node gives up", flush=True)
                return
            time.sleep(RESTART_SECONDS)
    except Stopped:
        print("told to stop", flush=True)


def run_once(command: list[str], environment: dict[str, str], seconds: float) -> None:
    """Until it ends by itself, the time is over or we are stopped."""
    process = subprocess.Popen([*RAY, *command], env={**os.environ, **environment}, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print("the time of this node is over", flush=True)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM ends Ray's processes in order; what stays is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
