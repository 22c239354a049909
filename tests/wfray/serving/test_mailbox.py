"""Pieces on their way to a reader: the first and the last at once, those in between joined."""

import asyncio
import time

import pytest

from wfray.serving.backend import EngineLost
from wfray.serving.engine import Counts, Piece
from wfray.serving.mailbox import Mailbox, spread

COUNTS = Counts(prompt=1, completion=4)


def piece(text: str, last: bool = False) -> Piece:
    return Piece(text=text, num_tokens=1, finish_reason="stop" if last else None, counts=COUNTS if last else None)


def test_pieces_within_the_interval_are_one() -> None:
    async def run() -> tuple[list[tuple[str, int]], float]:
        mailbox = Mailbox(interval=lambda: 0.3)
        mailbox.put(piece("a"))
        started = time.monotonic()
        read = [await mailbox.get()]
        mailbox.put(piece("b"))
        mailbox.put(piece("c"))
        read.append(await mailbox.get())
        waited = time.monotonic() - started
        mailbox.put(piece("d", last=True))
        read.append(await asyncio.wait_for(mailbox.get(), 0.2))
        return [(found.text, found.num_tokens) for found in read], waited

    read, waited = asyncio.run(run())
    assert read == [("a", 1), ("bc", 2), ("d", 1)] and waited >= 0.29


def test_an_error_comes_after_what_was_left_before() -> None:
    async def run() -> str:
        mailbox = Mailbox(interval=lambda: 0.0)
        mailbox.put(piece("a"))
        mailbox.fail(EngineLost("gone"))
        text = (await mailbox.get()).text
        with pytest.raises(EngineLost, match="gone"):
            await mailbox.get()
        return text

    assert asyncio.run(run()) == "a"


def test_answers_side_by_side_share_the_pieces_that_one_has_alone() -> None:
    assert [spread(0.05, count) for count in (1, 2, 4, 8)] == [0.05, 0.1, 0.2, 0.25]
    assert [spread(0.5, count) for count in (1, 8)] == [0.5, 0.5] and spread(0.0, 8) == 0.0
