"""lm-eval's two clients of the OpenAI API against a served model: log-likelihoods are those of llama.cpp, texts those of the API."""

from pathlib import Path

import pytest
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from wfray.data.tokenizer import load_gguf_tokenizer
from wfray.evals.gguf_lm import GGUFLM

ASKED = "<|im_start|>user\nHow many days are in a week?<|im_end|>\n<|im_start|>assistant\n"
CHOICES = [
    # The model says that it has finished after these, and lm-eval leaves the score of what follows out.
    (ASKED + "There are 7 days in a week", "."),
    (ASKED, "There are 7 days in a week."),
    ("The capital of France is", " Paris."),
    ("The capital of France is", " London."),
    ("A week has seven", " days"),
    ("2 + 2 =", " 4"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """The tokenizer as Hugging Face files."""
    directory = tmp_path_factory.mktemp("tokenizer")
    load_gguf_tokenizer(model_file.parent, model_file.name).save_pretrained(directory)
    return directory


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    """Requests of a task."""
    return [Instance(request_type=kind, doc={}, arguments=given, idx=index) for index, given in enumerate(arguments)]  # type: ignore[arg-type]


def test_log_likelihoods(url: str, tokenizer: Path, model_file: Path) -> None:
    served = LocalCompletionsAPI(
        base_url=f"{url}v1/completions", model="smol", tokenizer_backend="huggingface", tokenizer=str(tokenizer), batch_size=2
    )
    found = served.loglikelihood(instances("loglikelihood", CHOICES))
    wanted = GGUFLM(str(model_file), context=128, threads=1).loglikelihood(instances("loglikelihood", CHOICES))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=0.05)
    assert found[2][0] > found[3][0]


def test_texts(url: str, tokenizer: Path) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 12, "temperature": 0}
    plain = LocalCompletionsAPI(base_url=f"{url}v1/completions", model="smol", tokenizer_backend="huggingface", tokenizer=str(tokenizer))
    texts = plain.generate_until(instances("generate_until", [("1, 2, 3, 4,", dict(settings))]))
    body = {"model": "smol", "prompt": "1, 2, 3, 4,", "max_tokens": 12, "temperature": 0, "stop": ["\n"]}
    assert texts == [requests.post(f"{url}v1/completions", json=body, timeout=120).json()["choices"][0]["text"]]
    chat = LocalChatCompletion(base_url=f"{url}v1/chat/completions", model="smol")
    question = chat.apply_chat_template([{"role": "user", "content": "How many days are in a week?"}])
    assert "7 days" in chat.generate_until(instances("generate_until", [(question, dict(settings))]))[0]
