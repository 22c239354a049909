"""The process of one engine: `python -m wfray.serving.process FD`, where FD is its end of a pair of sockets.

One thread does everything: between two steps it reads what has come, and when there is nothing to compute it waits. When the other side
ends, so does this process; when the engine raises anything but `ValueError`, the process ends with the traceback on standard error.
"""

import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator

from wfray.serving.engine import Engine
from wfray.serving.wire import Command, Launch, Ready, Report

READ_BYTES = 1 << 16


class Lines:
    """Lines from a socket, as they come or after waiting for one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.held, self.ended = connection, b"", False

    def read(self, wait: bool) -> Iterator[bytes]:
        """Whole lines that are there; with `wait` at least one, unless the other side has ended."""
        while not self.ended:
            *lines, self.held = self.held.split(b"\n")
            yield from lines
            if lines and wait:
                return
            try:
                data = self.connection.recv(READ_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self.held += data
            self.ended = not data


def make_engine(launch: Launch) -> Engine:
    """Import and call what `launch` names."""
    module, _, name = launch.engine.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(**launch.arguments)
    return engine


def obey(engine: Engine, line: bytes, refused: dict[int, str]) -> None:
    """Do what a line says; a request that cannot be answered is noted with the reason."""
    command = Command.model_validate_json(line)
    if command.request is None:
        engine.drop(command.number)
        return
    try:
        engine.add(command.number, command.request)
    except ValueError as error:
        refused[command.number] = str(error)


def run(engine: Engine, lines: Lines) -> None:
    """Work until the other side ends."""
    while not lines.ended:
        refused: dict[int, str] = {}
        for line in lines.read(wait=not engine.busy):
            obey(engine, line, refused)
        if engine.busy or refused:
            # Also without a piece: this is how the other side knows that a long prompt is being read.
            send(lines.connection, Report(pieces=engine.step() if engine.busy else [], refused=refused))


def send(connection: socket.socket, message: Ready | Report) -> None:
    """Write one line; an end of the other side is noticed when reading."""
    try:
        connection.sendall(message.model_dump_json().encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        return


def main() -> None:
    """See the module docstring."""
    # Ctrl-C in a terminal reaches the whole group; this process ends when its parent does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    lines = Lines(connection)
    launch = Launch.model_validate_json(next(lines.read(wait=True)))
    try:
        engine = make_engine(launch)
    except ValueError as error:
        send(connection, Report(failed=str(error)))
        return
    send(connection, Ready(context=engine.context, slots=engine.slots, pid=os.getpid()))
    run(engine, lines)
    engine.close()


if __name__ == "__main__":
    main()
