"""The llama.cpp engine on a real model."""

import pytest

from wfray.serving.engine import Sampling
from wfray.serving.llama_cpp_engine import LlamaCppEngine

MESSAGES = [{"role": "user", "content": "How many days are in a week?"}]


def answer(engine, prompt, **sampling) -> tuple[str, int, str]:
    pieces = list(engine.generate(prompt, Sampling(**sampling)))
    return "".join(piece.text for piece in pieces), sum(piece.num_tokens for piece in pieces), pieces[-1].finish_reason


def test_the_chat_template_of_the_file_is_used(engine):
    rendered = engine.model.detokenize(engine.render_chat(MESSAGES), special=True).decode()
    assert rendered.startswith("<|im_start|>system\n")
    assert rendered.endswith("<|im_start|>user\nHow many days are in a week?<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_and_ends_by_itself(engine):
    text, num_tokens, reason = answer(engine, engine.render_chat(MESSAGES), temperature=0.0)
    assert "7 days" in text and "<|im_end|>" not in text
    assert reason == "stop" and num_tokens >= len(engine.tokenize(text))


def test_max_tokens_and_the_context_end_an_answer(engine):
    prompt = engine.tokenize("Once upon a time")
    assert answer(engine, prompt, temperature=0.0, max_tokens=5)[1:] == (5, "length")
    assert answer(engine, prompt * 10, temperature=0.0)[1] <= 128 - 40


def test_a_stop_text_ends_an_answer_before_it(engine):
    prompt = engine.render_chat(MESSAGES)
    whole, _, _ = answer(engine, prompt, temperature=0.0)
    text, _, reason = answer(engine, prompt, temperature=0.0, stop=("7",))
    assert text == whole[: whole.index("7")] and reason == "stop"


def test_a_seed_repeats_an_answer_and_others_differ(engine):
    prompt = engine.tokenize("My favourite")
    answers = [answer(engine, prompt, temperature=1.5, max_tokens=12, seed=seed)[0] for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1] and len(set(answers)) > 1


def test_a_tiny_top_p_is_greedy(engine):
    prompt = engine.tokenize("The sun is")
    greedy, _, _ = answer(engine, prompt, temperature=0.0, max_tokens=8)
    assert answer(engine, prompt, temperature=1.0, top_p=1e-6, seed=5, max_tokens=8)[0] == greedy


def test_a_prompt_longer_than_the_context_is_refused(engine):
    with pytest.raises(ValueError, match="the context is 128 tokens"):
        next(engine.generate([5] * 128, Sampling()))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load .*model\.gguf"):
        LlamaCppEngine(tmp_path / "model.gguf", context=128, threads=1)


def test_a_missing_file_and_a_context_too_long_are_refused(tmp_path, model_file):
    with pytest.raises(ValueError, match="there is no model file"):
        LlamaCppEngine(tmp_path / "model.gguf", context=128, threads=1)
    with pytest.raises(ValueError, match="exceeds the 8192 positions"):
        LlamaCppEngine(model_file, context=9000, threads=1)
