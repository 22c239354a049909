"""Where the requests of one model are answered: what the gate and the API know of it, whichever engine it is."""

from collections.abc import AsyncGenerator
from typing import Protocol

from wfray.serving.engine import Piece, Request

Pieces = AsyncGenerator[Piece, None]


class EngineLost(Exception):
    """The engine died with this answer unfinished; another one is being started."""


class Backend(Protocol):
    """A model that is running, or being started again."""

    slots: int
    """Answers that are made at once."""
    restarts: int
    """How often its process had to be started again."""

    async def start(self) -> None:
        """Load the model; raises `ValueError` for a user's mistake."""

    def generate(self, request: Request) -> Pieces:
        """Pieces of an answer as they come; closing the iterator frees its slot.

        Raises:
            ValueError: the request cannot be answered.
            EngineLost: the engine died.
        """

    def check_health(self) -> None:
        """Raise `RuntimeError` when it is beyond help."""

    async def close(self) -> None:
        """End its process; answers under way are lost."""
