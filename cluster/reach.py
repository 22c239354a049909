"""Reaching a head: commands and tunnels over the SSH that SkyPilot has set up under the cluster's name.

Nothing of a cluster listens to the outside but SSH. Ray's dashboard, Serve and the metrics are on the head's loopback.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wfray.runs.children import free_ports

OPTIONS = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
TUNNEL_SECONDS = 30.0


class Unreachable(ValueError):
    """The head does not answer."""


def ssh_command(host: str, command: str) -> list[str]:
    """A command on a head."""
    return ["ssh", *OPTIONS, host, command]


def tunnel_command(host: str, ports: dict[int, int]) -> list[str]:
    """Tunnels from ports here to ports there, both on loopback."""
    forwards = [part for here, there in ports.items() for part in ("-L", f"127.0.0.1:{here}:127.0.0.1:{there}")]
    return ["ssh", "-N", *OPTIONS, "-o", "ExitOnForwardFailure=yes", *forwards, host]


def run_there(host: str, command: str) -> str:
    """The output of a command on a head.

    Raises:
        Unreachable: SSH does not get there.
        ValueError: the command failed.
    """
    result = subprocess.run(ssh_command(host, command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode == 255:
        raise Unreachable(why_unreachable(host, result.stderr))
    if result.returncode:
        raise ValueError(f"`{command}` failed on {host}: {(result.stderr or result.stdout).strip()[-500:]}")
    return result.stdout


def why_unreachable(host: str, error: str) -> str:
    """What can be done."""
    last = error.strip().splitlines()[-1] if error.strip() else "no answer"
    return f"the head {host!r} cannot be reached ({last}): is it up (`wf status`)? `sky status {host}` renews its SSH configuration"


@contextmanager
def tunnel(host: str, ports: list[int]) -> Iterator[list[int]]:
    """Hold tunnels to `ports` of a head open; yields the ports here.

    Raises:
        Unreachable: they cannot be opened.
    """
    here = free_ports(len(ports))
    with open_tunnels(host, dict(zip(here, ports, strict=True))):
        yield here


@contextmanager
def open_tunnels(host: str, ports: dict[int, int]) -> Iterator["subprocess.Popen[str]"]:
    """Hold tunnels from ports here to ports of a head open; yields the process that does, which ends when the way there is lost.

    Raises:
        ValueError: something else listens on a port here.
        Unreachable: they cannot be opened.
    """
    if taken := [port for port in ports if is_taken(port)]:
        raise ValueError(f"port {taken[0]} is taken on this machine, perhaps by a Ray of its own: end what listens there")
    process = subprocess.Popen(tunnel_command(host, ports), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_tunnel(process, host, next(iter(ports)))
        yield process
    finally:
        process.terminate()
        process.wait()


def is_taken(port: int) -> bool:
    """Whether something listens on a loopback port."""
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def wait_for_tunnel(process: "subprocess.Popen[str]", host: str, port: int) -> None:
    """Until the tunnel takes connections."""
    ends = time.monotonic() + TUNNEL_SECONDS
    while True:
        if process.poll() is not None:
            assert process.stderr is not None
            raise Unreachable(why_unreachable(host, process.stderr.read()))
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > ends:
                raise Unreachable(why_unreachable(host, "the tunnel does not open")) from None
            time.sleep(0.1)
