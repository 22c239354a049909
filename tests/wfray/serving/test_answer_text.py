"""Bytes become text only when whole and certain."""

import pytest

from wfray.serving.answer_text import AnswerText


def test_a_character_of_several_tokens_comes_whole():
    answer = AnswerText(stop=())
    pieces = [answer.add(bytes([byte])) for byte in "é🙂".encode()]
    assert pieces == ["", "é", "", "", "", "🙂"]


def test_broken_bytes_at_the_end_become_a_replacement_character():
    assert AnswerText(stop=()).add(b"a\xf0\x9f", final=True) == "a\ufffd"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["Hello. STOP more"], "Hello. "),
        (["Hello. S", "T", "OP", " more"], "Hello. "),
        (["a ST", "art"], "a STart"),
        (["xEN", "D"], "x"),
    ],
)
def test_a_stop_text_is_never_sent_even_in_parts(chunks, expected):
    answer = AnswerText(stop=("STOP", "END"))
    sent = ""
    for chunk in chunks:
        sent += answer.add(chunk.encode())
        if answer.stopped:
            break
    assert sent == expected


def test_what_might_begin_a_stop_text_is_sent_at_the_end():
    answer = AnswerText(stop=("STOP",))
    assert [answer.add(b"a ST"), answer.add(b"", final=True)] == ["a ", "ST"]
