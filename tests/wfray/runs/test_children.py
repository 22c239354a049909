"""Processes that a server leaves behind."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wfray.runs import children
from wfray.runs.children import end_group, free_port, free_ports

PARENT = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)"


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_left_of_a_group_is_killed_and_an_empty_group_is_no_error() -> None:
    server = subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    child = int(server.stdout.readline())
    assert server.wait() == 0 and is_alive(child)
    end_group(server.pid)
    deadline = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    end_group(server.pid)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50


def test_a_free_port_is_none_that_the_system_gives_to_a_connection() -> None:
    lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    assert not set(free_ports(50)) & set(range(lowest, highest + 1))


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(children, "PORTS", range(port, port + 1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        with pytest.raises(RuntimeError, match="not 1 free TCP ports"):
            free_port()
    assert free_port() == port
