"""Ctrl-C and SIGTERM end the tiny pipeline in order, and the same command goes on."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.jobs.pipelines import family, finish, pipeline_file, start, still_alive, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """A signal ends the pipeline in order: its message, and no process left."""
    processes = family(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and output.endswith("error: interrupted; the same command goes on from here\n"), output
    assert not still_alive(processes)


def test_ctrl_c_and_sigterm_leave_no_process_and_a_later_run_goes_on(tmp_path: Path) -> None:
    path = pipeline_file(tmp_path)
    manifest = tmp_path / "run" / "pack" / "manifest.json"
    starting = start(path, "until=pack")
    wait_for(starting, lambda: len(family(starting)) > 3)
    interrupt(starting, signal.SIGTERM)
    packing = start(path, "until=pack")
    wait_for(packing, manifest.exists)
    interrupt(packing, signal.SIGINT)
    assert json.loads(manifest.read_text())["status"] != "complete"
    assert "pack: done" in finish(start(path, "until=pack"))
