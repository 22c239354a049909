"""Servers that a process of ours starts: where they may listen, and that none outlives its parent."""

import ctypes
import os
import signal
import socket
from contextlib import ExitStack, suppress

LINUX_PR_SET_PDEATHSIG = 1


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
    """Different TCP ports on loopback that are free now: all are held until the last is found."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(number)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
