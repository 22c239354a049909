"""A local cluster: as README's by-hand section uses it, and gone with whoever started it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.stages import CONFIGS
from wfray.runs import Manifest

pytestmark = [pytest.mark.ray]

ROOT = Path(__file__).parents[2]
BY_HAND = re.findall(r"^ray job submit .*", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m cluster.local` on ports of its own, and what it printed once it was up."""
    command = [sys.executable, "-u", "-m", "cluster.local", "--num-cpus=2", "--object-store-gb=0.1", "--dashboard-port=0", "--http-port=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline() + process.stdout.readline()
    process.kill()


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses on which some of `processes` take connections."""
    pids = {process.pid for process in processes}
    return {socket.laddr.ip for socket in psutil.net_connections("tcp") if socket.status == "LISTEN" and socket.pid in pids}


def test_readme_names_every_job_and_its_configuration() -> None:
    assert len(BY_HAND) == len(CONFIGS)
    for line in BY_HAND:
        arguments = shlex.split(line.partition(" -- ")[2].replace("$RUN", "/runs/mine"))
        job, config, overrides = arguments[2].removeprefix("jobs."), arguments[4], arguments[5:]
        CONFIGS[job].load(ROOT / config, overrides)


def test_a_job_submitted_by_hand_and_a_cluster_that_ends_with_its_starter(by_hand, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    process, printed = by_hand
    address = re.search(r"dashboard (http://127\.0\.0\.1:\d+)", printed)
    assert address
    line = next(line for line in BY_HAND if "jobs.pack" in line)
    command = line.replace("quickstart", "tiny").replace("$RUN", str(tmp_path / "run"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "RAY_ADDRESS": address[1], "PATH": path}
    result = subprocess.run(shlex.split(command), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0 and "tokens packed in" in result.stdout, result.stdout + result.stderr
    assert Manifest.read(tmp_path / "run" / "pack").status == "complete"  # type: ignore[union-attr]
    family = psutil.Process(process.pid).children(recursive=True)
    assert {address.removeprefix("::ffff:") for address in listening(family)} == {"127.0.0.1"}
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
