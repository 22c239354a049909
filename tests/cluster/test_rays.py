"""A node's Ray is kept running, and a node whose head is gone gives up."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import rays


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs in the place of `ray`, begun again at once; the signal handler is put back."""
    monkeypatch.setattr(rays, "RAY", [sys.executable, "-c"])
    monkeypatch.setattr(rays, "RESTART_SECONDS", 0.01)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def started(path: Path, seconds: float) -> str:
    """A program that notes its start and runs for some time."""
    return f"import time; open({str(path)!r}, 'a').write('x'); time.sleep({seconds})"


def test_a_node_whose_ray_ends_again_and_again_but_runs_in_between_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run is shorter than what a lonely node waits for, as when the head's Ray is started again every few minutes."""
    rays.keep_running([started(tmp_path / "starts", 0.5)], {}, seconds=4.0, lonely_seconds=1.2)
    assert "gives up" not in capsys.readouterr().out and len((tmp_path / "starts").read_text()) >= 2


def test_a_node_whose_ray_cannot_run_gives_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    rays.keep_running(["raise SystemExit(1)"], {}, seconds=600.0, lonely_seconds=10.0)
    assert "Ray could not run for 10 s: this node gives up" in capsys.readouterr().out
    assert time.monotonic() - began < 300
