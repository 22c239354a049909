"""Accuracy on labelled examples: the choice that whole sequences would give, and that lm-eval makes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from wfray.config.model import RandomModel
from wfray.data.batch import CONTEXT, LABEL, RESPONSE, label_spans, make_batch
from wfray.data.tokenizer import load_directory_tokenizer
from wfray.evals import Accuracy
from wfray.evals.classification import accuracy, label_tokens
from wfray.student import load_original, materialize

WORDS = ["negative", "positive"]
SMOLLM2 = yaml.safe_load((Path(__file__).parents[3] / "configs/models/smollm2_135m.yaml").read_text())
SHAPE = {"family": "llama", "vocab_size": 49152, "tied_head": True, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1}
SHAPE |= {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64}
EXAMPLES = [(f"Sentence {number}: the film was number {number * 37 % 11}.\n", WORDS[number % 2]) for number in range(12)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = RandomModel.model_validate({"kind": "random", "tokenizer": SMOLLM2, "architecture": SHAPE, "seed": 3})
    return materialize(source, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(original: Path) -> PreTrainedTokenizerBase:
    return load_directory_tokenizer(original)


def packed(tokenizer: PreTrainedTokenizerBase, per_row: int = 3, length: int = 72) -> tuple:  # type: ignore[type-arg]
    """The examples, some a row, with padding, as a batch and its label spans."""
    rows = len(EXAMPLES) // per_row
    ids, segments = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int16)
    marks = np.full((rows, length), CONTEXT, np.uint8)
    for row in range(rows):
        at = 0
        for segment, (prompt, word) in enumerate(EXAMPLES[row * per_row : (row + 1) * per_row], start=1):
            before, label = tokenizer.encode(prompt), tokenizer.encode(word)
            end = at + len(before) + len(label)
            ids[row, at : end + 1] = [*before, *label, 2]
            segments[row, at : end + 1] = segment
            marks[row, end - len(label) : end], marks[row, end] = LABEL, RESPONSE
            at = end + 1
    batch = make_batch(ids, segments, np.zeros(rows, np.int16), np.arange(rows), marks)
    return batch, label_spans(segments, marks)


def test_the_choice_is_lm_evals(original: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    batch, spans = packed(tokenizer)
    found = accuracy(load_original(original), batch, spans, label_tokens(tokenizer, WORDS), 2, torch.float32)
    lm = HFLM(str(original), dtype="float32", device="cpu", batch_size=1)
    asked = [Instance("loglikelihood", {}, (prompt, word), 0) for prompt, _ in EXAMPLES for word in WORDS]
    likelihoods = [likelihood for likelihood, _ in lm.loglikelihood(asked)]
    assert found.answers == [int(likelihoods[2 * n + 1] > likelihoods[2 * n]) for n in range(len(EXAMPLES))]
    assert found.truth == [WORDS.index(word) for _, word in EXAMPLES]
    assert 0 < sum(found.right) < len(EXAMPLES)


def test_examples_see_nothing_of_each_other_and_batches_change_nothing(original: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, tokens = load_original(original), label_tokens(tokenizer, WORDS)
    alone = accuracy(model, *packed(tokenizer, per_row=1), tokens, 5, torch.float32)
    assert alone == accuracy(model, *packed(tokenizer), tokens, 1, torch.float32)


def test_labels_that_cannot_be_told_apart_or_are_not_named_are_refused(original: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="two begin with the same token"):
        label_tokens(tokenizer, ["positive", "positive or so"])
    with pytest.raises(ValueError, match="name all labels"):
        accuracy(load_original(original), *packed(tokenizer), label_tokens(tokenizer, ["yes", "positive"]), 2, torch.float32)


def test_shares_have_intervals() -> None:
    found = Accuracy(truth=[0, 1, 1, 0], answers=[0, 1, 0, 0])
    assert found.right == [1, 1, 0, 1] and found.share == 0.75
    assert 0.3 < found.interval[0] < 0.75 < found.interval[1] < 1
