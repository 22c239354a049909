"""Log-probabilities in OpenAI's layouts where tokens and characters do not go together."""

from wfray.serving.engine import Piece, TokenScore
from wfray.serving.shapes import CHAT, PLAIN


def scored(*tokens: bytes) -> list[TokenScore]:
    return [TokenScore(token=token.decode(errors="replace"), bytes=list(token), logprob=-1.0) for token in tokens]


def test_offsets_count_characters_of_the_text_and_not_of_the_tokens() -> None:
    llama = "🦙".encode()
    logprobs = PLAIN.logprobs(scored(b"a ", llama[:1], llama[1:3], llama[3:], b" b"), offset=10)
    assert logprobs is not None and logprobs["text_offset"] == [10, 12, 12, 12, 13]


def test_an_answer_without_tokens_has_log_probabilities_where_they_are_wanted() -> None:
    empty = Piece(text="", num_tokens=1, finish_reason="stop")
    assert CHAT.choice(0, empty, is_scored=True)["logprobs"] == {"content": [], "refusal": None}
    assert CHAT.choice(0, empty, is_scored=False)["logprobs"] is None
