"""The block-diffusion engine: the decoder's own answers, in pieces, several at once, and through HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.wfray.data.conftest import smollm2, tokenizer, tokenizer_directory
from tests.wfray.diffusion.test_student import config, model_of
from tests.wfray.serving.served import Served, answer, hosting, run_all, serving
from wfray.diffusion.decode import generate
from wfray.diffusion.student import DiffusionStudent
from wfray.serving.diffusion_engine import DiffusionEngine
from wfray.serving.engine import Request, Sampling
from wfray.serving.prompts import prompt_tokens
from wfray.student import save_student

__all__ = ["smollm2", "tokenizer", "tokenizer_directory"]
VOCABULARY, CONTEXT = 49152, 64
PROMPTS: list[str | list[int]] = ["Once upon a time", [5, 9, 2, 7], "The", "In the beginning there was nothing but"]


@pytest.fixture(scope="module")
def student(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage directory with an untrained student that writes blocks of four."""
    directory = tmp_path_factory.mktemp("stage")
    save_student(model_of(VOCABULARY, tied=True), directory / "autoregressive", tokenizer_from=tokenizer_directory)
    kind = DiffusionStudent(config())
    kind.save(kind.load(directory / "autoregressive"), directory / "student", directory / "autoregressive", 0)
    return directory


@pytest.fixture(scope="module")
def engine(student: Path) -> Iterator[DiffusionEngine]:
    engine = DiffusionEngine(student, CONTEXT, slots=2, threads=1)
    yield engine
    engine.close()


def greedy(prompt: str | list[int], **changes: object) -> Request:
    return Request(prompt=prompt, sampling=Sampling(**{"temperature": 0.0, "max_tokens": 11, **changes}))  # type: ignore[arg-type]


def decoded(engine: DiffusionEngine, prompt: str | list[int], max_tokens: int = 11) -> str:
    """The answer by the decoder alone."""
    decoding = replace(engine.decoder.decoding, max_tokens=max_tokens)
    model, ends = engine.decoder.model, frozenset({engine.tokenizer.eos_token_id})
    [tokens], _ = generate(model, VOCABULARY, ends, decoding, [prompt_tokens(engine.tokenizer, VOCABULARY, prompt)])
    return b"".join(engine.token_bytes[token] for token in tokens).decode(errors="replace")


def test_answers_are_the_decoders_alone_and_together(engine: DiffusionEngine) -> None:
    wanted = [decoded(engine, prompt) for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, wanted, strict=True):
        piece = answer(engine, greedy(prompt))
        assert piece.text == text and piece.finish_reason == "length"
        assert piece.num_tokens == 11 and piece.counts is not None and piece.counts.completion == 11
    for number, prompt in enumerate(PROMPTS):
        engine.add(number, greedy(prompt))
    assert [piece.text for _, piece in sorted(run_all(engine).items())] == wanted
    assert not engine.busy


def test_text_comes_in_pieces_and_a_stop_text_ends_it(engine: DiffusionEngine) -> None:
    engine.add(0, greedy(PROMPTS[0], max_tokens=20))
    pieces = []
    while engine.busy:
        pieces += [piece for _, piece in engine.step()]
    whole = "".join(piece.text for piece in pieces)
    assert len(pieces) > 2 and [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    stopped = answer(engine, greedy(PROMPTS[0], max_tokens=20, stop=(stop,)))
    assert stopped.text == whole[: whole.index(stop)] and stopped.finish_reason == "stop"


def test_the_end_token_ends_an_answer(engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt_tokens(engine.tokenizer, VOCABULARY, PROMPTS[0])
    [written], _ = generate(engine.decoder.model, VOCABULARY, frozenset(), replace(engine.decoder.decoding, max_tokens=11), [tokens])
    monkeypatch.setattr(engine.decoder, "stop_ids", frozenset({written[5]}))
    piece = answer(engine, greedy(PROMPTS[0]))
    assert piece.finish_reason == "stop" and piece.num_tokens <= 5


def test_a_seed_repeats_an_answer(engine: DiffusionEngine) -> None:
    texts = [answer(engine, greedy(PROMPTS[0], temperature=1.5, seed=seed)).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_that_nobody_waits_for_frees_its_row(engine: DiffusionEngine) -> None:
    for number in range(3):
        engine.add(number, greedy(PROMPTS[0]))
    engine.step()
    engine.drop(0)
    engine.drop(7)
    assert sorted(run_all(engine)) == [1, 2]


def test_what_it_cannot_do_is_refused(engine: DiffusionEngine) -> None:
    for request, message in [
        (Request(prompt="a", num_logprobs=1), "gives no log-probabilities"),
        (Request(prompt="a", echo=True), "no echo"),
        (greedy([5] * CONTEXT), "the prompt has 64 tokens, but the context is 64 tokens"),
        (greedy("a", max_tokens=0), "max_tokens 0 asks for the prompt alone"),
        (greedy([VOCABULARY]), "the prompt holds the mask token"),
        (greedy([VOCABULARY + 5]), "is not in the vocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.add(0, request)
    assert not engine.busy


def test_a_directory_without_one_and_a_context_too_long_are_refused(student: Path) -> None:
    with pytest.raises(ValueError, match="it is no block-diffusion student"):
        DiffusionEngine(student / "autoregressive", CONTEXT, 1, 1)
    with pytest.raises(ValueError, match="exceeds the 64 positions"):
        DiffusionEngine(student, 128, 1, 1)


def test_it_answers_through_http_in_a_process_of_its_own(student: Path) -> None:
    async def scenario(served: Served) -> tuple[httpx.Response, httpx.Response]:
        return await served.complete(max_tokens=11), await served.complete(max_tokens=11, logprobs=1)

    whole, refused = serving(hosting(student, model={"engine": "diffusion", "context": CONTEXT, "slots": 2}), scenario)
    body = whole.json()
    assert body["usage"]["completion_tokens"] == 11 and body["choices"][0]["finish_reason"] == "length" and body["choices"][0]["text"]
    assert refused.status_code == 400 and "no log-probabilities" in refused.json()["error"]["message"]
