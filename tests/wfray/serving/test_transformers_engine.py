"""The transformers engine on a small random model with a real tokenizer, against transformers' own generation."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.wfray.serving.served import WEEK, answer, run_all
from wfray.data.tokenizer import load_directory_tokenizer, load_gguf_tokenizer
from wfray.serving.engine import Request, Sampling
from wfray.serving.llama_cpp_engine import LlamaCppEngine
from wfray.serving.prompts import prompt_tokens
from wfray.serving.transformers_engine import TransformersEngine

GREEDY = Sampling(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """A two-layer Llama of random weights."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = load_gguf_tokenizer(model_file.parent, model_file.name)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.2, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def transformers_engine(directory: Path) -> TransformersEngine:
    return TransformersEngine(directory, context=64, slots=2, threads=1)


def test_greedy_answers_are_transformers_own(transformers_engine: TransformersEngine, directory: Path) -> None:
    tokenizer = load_directory_tokenizer(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=transformers_engine.model.dtype).eval()
    prompts = ["The sun is", "Once upon a time", "A cat"]
    for number, prompt in enumerate(prompts):
        transformers_engine.add(number, Request(prompt=prompt, sampling=GREEDY))
    answers = run_all(transformers_engine)
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        wanted = reference.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert answers[number].text == tokenizer.decode(wanted) and answers[number].finish_reason == "length"


def test_scores_of_a_prompt_are_log_probabilities(transformers_engine: TransformersEngine) -> None:
    piece = answer(transformers_engine, Request(prompt="The sun is bright", sampling=GREEDY, echo=True, num_logprobs=1))
    ids = transformers_engine.tokenizer("The sun is bright")["input_ids"]
    with torch.inference_mode():
        logprobs = transformers_engine.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    wanted = [float(logprobs[position, token]) for position, token in enumerate(ids[1:])]
    assert [score.logprob for score in piece.scores[1 : len(ids)]] == pytest.approx(wanted, abs=0.02)
    assert piece.scores[0].logprob is None and len(piece.scores) == len(ids) + 8


def test_bytes_of_tokens_are_llama_cpps(transformers_engine: TransformersEngine, model_file: Path) -> None:
    engine = LlamaCppEngine(model_file, context=64, slots=1, threads=1)
    assert transformers_engine.token_bytes == engine.llama.token_bytes
    assert engine.tokens_of(WEEK) == prompt_tokens(transformers_engine.tokenizer, len(transformers_engine.token_bytes), WEEK)
    engine.close()


def test_what_it_cannot_load_or_answer_is_refused(transformers_engine: TransformersEngine, tmp_path: Path, directory: Path) -> None:
    with pytest.raises(ValueError, match="holds no tokenizer.json"):
        TransformersEngine(tmp_path, context=64, slots=1, threads=1)
    with pytest.raises(ValueError, match="exceeds the 256 positions"):
        TransformersEngine(directory, context=512, slots=1, threads=1)
    with pytest.raises(ValueError, match="the context is 64 tokens"):
        transformers_engine.add(0, Request(prompt="word " * 100))
