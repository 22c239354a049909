"""What a replica and its engine's process say to each other: one JSON object a line over a pair of sockets.

To the process: first a `Launch`, then `Command`s. From it: first a `Ready`, or a `Report` that it cannot start; then one `Report` a step,
with what all answers have new, so that the cost of a step does not grow with lines. The end of the stream is the end of the other side.
"""

from wfray.serving.engine import Piece, Request, Wire

Arguments = dict[str, str | int | float | bool | None]


class Launch(Wire):
    """What to load."""

    engine: str
    """Import path of a callable, `package.module:name`, that makes an `Engine`."""
    arguments: Arguments
    """Its keyword arguments."""


class Command(Wire):
    """One thing to do: begin an answer, or, without a request, forget it."""

    number: int
    request: Request | None = None


class Ready(Wire):
    """The engine is loaded."""

    context: int
    slots: int
    pid: int


class Report(Wire):
    """What is new."""

    pieces: list[tuple[int, Piece]] = []
    refused: dict[int, str] = {}
    """Requests that cannot be answered, and why."""
    failed: str | None = None
    """Why the engine cannot start: a mistake of the user's."""
