"""Servers that a process of ours starts: where they may listen, and that none outlives its parent."""

import ctypes
import os
import random
import signal
import socket
from contextlib import ExitStack, suppress

LINUX_PR_SET_PDEATHSIG = 1
PORTS = range(20_000, 32_768)
"""Above those of Ray's workers, and below those that Linux gives to connections, which could take a port before its server binds it."""


def die_with_parent() -> None:
    """In the child: ask the kernel for SIGTERM when the parent dies, on which servers end their own processes in order."""
    ctypes.CDLL(None).prctl(LINUX_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(leader: int) -> None:
    """Kill what is left of the process group of a server that has ended: vllm's engine outlives its server, with the model in memory."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Different TCP ports on loopback that are free now: all are held until the last is found.

    Raises:
        RuntimeError: there are not that many.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.Random().sample(PORTS, len(PORTS)):
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == number:
                return found
    raise RuntimeError(f"there are not {number} free TCP ports from {PORTS.start} to {PORTS.stop - 1}")
