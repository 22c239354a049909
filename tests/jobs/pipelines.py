"""The tiny pipeline as a process, for the tests that run it, interrupt it and kill it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NUM_STEPS = 64
PRETRAIN = {"train.tokens": 256 * NUM_STEPS, "train.checkpoint_every_tokens": 2048}
"""A checkpoint every 8 steps: long enough to be killed in the middle."""


def pipeline_file(directory: Path) -> Path:
    """The tiny pipeline in a run directory of its own, with a longer pre-training."""
    tree = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    tree["run"] = str(directory / "run")
    for call in tree["stages"]:
        if call["job"] == "pretrain":
            call["set"] = PRETRAIN
    path = directory / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The pipeline as a user starts it."""
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(path), *arguments]
    # A shell ignores SIGINT for what it starts in the background, these tests perhaps.
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; its output."""
    try:
        output, _ = process.communicate(timeout=1200)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    return output


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    """Wait until something holds while the pipeline runs."""
    while not what():
        if process.poll() is not None:
            pytest.fail(f"the pipeline ended too early:\n{process.communicate()[0]}")
        time.sleep(0.02)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The pipeline and every process below it."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    """`kill -9` every one that still lives."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live on two minutes later; the dead that nobody has waited for do not count."""
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=120)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
