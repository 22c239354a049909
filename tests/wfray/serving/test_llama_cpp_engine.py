"""The llama.cpp engine on a real model: answers, batching, reuse of beginnings, scores against llama.cpp's own logits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.wfray.serving.served import CONTEXT, WEEK, answer, run_all
from wfray.export.llama_cpp import logits_of, open_model
from wfray.serving.engine import Piece, Request, Sampling
from wfray.serving.llama_cpp_engine import LlamaCppEngine

GREEDY = Sampling(temperature=0.0)
BEGINNING = " ".join(["The quick brown fox jumps over the lazy dog."] * 5)


def greedy(**changes: object) -> Sampling:
    return GREEDY.model_copy(update=changes)


def ask(engine: LlamaCppEngine, prompt: object, **sampling: object):
    return answer(engine, Request(prompt=prompt, sampling=greedy(**sampling)))


def test_the_chat_template_of_the_file_is_used(engine):
    rendered = engine.render(WEEK)
    assert rendered.startswith("<|im_start|>system\n")
    assert rendered.endswith("<|im_start|>user\nHow many days are in a week?<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_and_ends_by_itself(engine):
    piece = ask(engine, WEEK)
    assert "7 days" in piece.text and "<|im_end|>" not in piece.text
    assert piece.finish_reason == "stop" and piece.num_tokens == piece.counts.completion > 5


def test_max_tokens_and_the_context_end_an_answer(engine):
    short = ask(engine, "Once upon a time", max_tokens=5)
    assert (short.num_tokens, short.finish_reason) == (5, "length")
    full = ask(engine, "Once upon a time " * 20)
    assert full.counts.prompt + full.num_tokens <= CONTEXT


def test_a_stop_text_ends_an_answer_before_it(engine):
    whole = ask(engine, WEEK).text
    stopped = ask(engine, WEEK, stop=("7",))
    assert stopped.text == whole[: whole.index("7")] and stopped.finish_reason == "stop"


def test_a_seed_repeats_an_answer_and_others_differ(engine):
    texts = [ask(engine, "My favourite", temperature=1.5, max_tokens=12, seed=seed).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_a_tiny_top_p_is_greedy(engine):
    alone = ask(engine, "The sun is", max_tokens=8)
    assert ask(engine, "The sun is", temperature=1.0, top_p=1e-6, seed=5, max_tokens=8).text == alone.text


def test_more_answers_than_slots_are_those_made_alone(engine):
    prompts = ["The sun is", "A cat sat on", "In 1999", "My name is", "Water boils at", "The capital of France is"]
    alone = [ask(engine, prompt, max_tokens=12).text for prompt in prompts]
    for number, prompt in enumerate(prompts):
        engine.add(number, Request(prompt=prompt, sampling=greedy(max_tokens=12)))
    together = run_all(engine)
    assert [together[number].text for number in range(len(prompts))] == alone


def test_a_long_prompt_does_not_stop_others_and_is_read_in_parts(model_file):
    engine = LlamaCppEngine(model_file, context=1024, slots=2, threads=1)
    engine.add(0, Request(prompt="Once upon a time", sampling=greedy(max_tokens=30)))
    engine.step()
    engine.add(1, Request(prompt="word " * 700, sampling=greedy(max_tokens=1)))
    assert [number for number, _ in engine.step()] == [0]
    assert sorted(number for number, _ in engine.step()) == [0, 1]
    engine.close()


def test_a_common_beginning_is_computed_once(engine):
    first = ask(engine, BEGINNING + " A slow", max_tokens=2)
    again = answer(engine, Request(prompt=BEGINNING + " The quick", sampling=greedy(max_tokens=2), num_logprobs=3))
    num_shared = len(engine.tokens_of(BEGINNING))
    assert first.counts.cached < num_shared - 5 and num_shared - 1 <= again.counts.cached <= num_shared
    assert_same_scores(again, engine.llama.model.path_model, BEGINNING + " The quick")


def test_a_beginning_is_copied_from_a_slot_at_work(model_file):
    engine = LlamaCppEngine(model_file, context=256, slots=2, threads=1)
    engine.add(0, Request(prompt=BEGINNING + BEGINNING, sampling=greedy(max_tokens=6)))
    engine.step()
    engine.add(1, Request(prompt=BEGINNING + BEGINNING + " The quick", sampling=greedy(max_tokens=2), num_logprobs=3))
    answers = run_all(engine)
    assert answers[1].counts.cached >= len(engine.tokens_of(BEGINNING + BEGINNING)) - 1
    assert_same_scores(answers[1], model_file, BEGINNING + BEGINNING + " The quick")
    engine.close()


def test_answers_under_way_stand_side_by_side_and_in_order(model_file):
    engine = LlamaCppEngine(model_file, context=64, slots=6, threads=1)
    for number in range(6):
        engine.add(number, Request(prompt=f"{number} is a number", sampling=greedy(max_tokens=40)))
    engine.step()
    for number in (4, 1, 2, 0):
        engine.drop(number)
    for number in (6, 7):
        engine.add(number, Request(prompt="Once upon a time", sampling=greedy(max_tokens=40)))
    engine.step()
    slots = {number: job.slot.index for number, job in engine.jobs.items()}
    assert {slots[6], slots[7]} == {2, 4}, "beside 3 and 5, not apart from them in 0 and 1"
    assert [job.slot.index for job, _ in engine.fill()] == [2, 3, 4, 5]
    engine.close()


def assert_same_scores(piece: Piece, file: Path | str, prompt: str) -> None:
    """The first token of an answer was as likely as where nothing had been computed before."""
    fresh = LlamaCppEngine(Path(file), context=256, slots=1, threads=1)
    alone = answer(fresh, Request(prompt=prompt, sampling=greedy(max_tokens=1), num_logprobs=3)).scores[0]
    fresh.close()
    assert piece.scores[0].top[0].token == alone.top[0].token
    assert abs(piece.scores[0].top[0].logprob - alone.top[0].logprob) < 0.02


def test_scores_of_prompt_and_answer_are_llama_cpps(engine, model_file):
    prompt = "The capital of France is Paris. The capital of"
    piece = answer(engine, Request(prompt=prompt, sampling=greedy(max_tokens=4), echo=True, num_logprobs=3))
    ids = engine.tokens_of(prompt)
    reference = open_model(model_file, CONTEXT, threads=1, all_logits=True)
    answer_ids = engine.llama.tokenize(piece.text[len(prompt) :], add_special=False)
    logprobs = torch.log_softmax(torch.tensor(np.array(logits_of(reference, ids + answer_ids)), dtype=torch.float64), -1)
    wanted = [float(logprobs[position, token]) for position, token in enumerate((ids + answer_ids)[1:])]
    assert piece.text.startswith(prompt) and piece.scores[0].logprob is None and len(piece.scores) == len(ids) + 4
    assert np.allclose([score.logprob for score in piece.scores[1:]], wanted, atol=0.02)
    for score, row in zip(piece.scores[1:], logprobs, strict=False):
        assert [other.logprob for other in score.top] == sorted((other.logprob for other in score.top), reverse=True)
        assert abs(score.top[0].logprob - float(row.max())) < 0.02
    assert "".join(score.token for score in piece.scores) == piece.text
    reference.close()


def test_a_prompt_is_scored_without_an_answer(engine):
    piece = answer(engine, Request(prompt=[1, 504, 3575, 282], sampling=greedy(max_tokens=0), echo=True, num_logprobs=0))
    assert (piece.num_tokens, piece.counts.completion, len(piece.scores)) == (0, 0, 4)


def test_a_dropped_answer_frees_its_slot(engine):
    for number in range(4):
        engine.add(number, Request(prompt="Once upon a time", sampling=greedy(max_tokens=60)))
    engine.step()
    for number in (0, 1, 3):
        engine.drop(number)
    assert set(run_all(engine)) == {2}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * CONTEXT, "the context is 128 tokens"),
        ("word " * 200, "the context is 128 tokens"),
        ("x" * 10_000_000, "has 10000000 characters, but the context is 128 tokens"),
        ([5, 10**6], "token id 1000000 is not in the vocabulary"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(engine, prompt, message):
    with pytest.raises(ValueError, match=message):
        engine.add(0, Request(prompt=prompt))
    assert not engine.busy


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load .*model\.gguf"):
        LlamaCppEngine(tmp_path / "model.gguf", context=128, slots=1, threads=1)


def test_a_missing_file_and_a_context_too_long_are_refused(tmp_path, model_file):
    with pytest.raises(ValueError, match="there is no model file"):
        LlamaCppEngine(tmp_path / "model.gguf", context=128, slots=1, threads=1)
    with pytest.raises(ValueError, match="exceeds the 8192 positions"):
        LlamaCppEngine(model_file, context=9000, slots=1, threads=1)
