"""Greedy continuation, against argmax over the whole text again for each token, and the choice of prompts."""

import numpy as np
import torch
from transformers import PreTrainedModel

from wfray.data.batch import PackedBatch
from wfray.evals.continuations import continue_greedily, heldout_prompts
from wfray.student import hidden_states, lm_head_weight


def test_equals_recomputing_the_whole_text_for_each_token(model: PreTrainedModel, documents: list[np.ndarray]) -> None:
    text = documents[1].tolist()
    expected = []
    for _ in range(12):
        ids = torch.tensor([text])
        batch = {"input_ids": ids, "position_ids": torch.arange(len(text))[None], "segment_ids": torch.ones_like(ids)}
        with torch.no_grad():
            logits = hidden_states(model, batch)[0, -1] @ lm_head_weight(model).T
        expected.append(int(logits.argmax()))
        text.append(expected[-1])
    assert continue_greedily(model, documents[1], 12, torch.float32) == expected


def test_prompts_are_beginnings_of_documents_that_are_long_enough(batch: PackedBatch, documents: list[np.ndarray]) -> None:
    found = heldout_prompts(batch, num=10, prompt_tokens=10, new_tokens=12)
    wholes = {tuple(document[:22]) for document in documents if len(document) >= 22}
    assert {(*prompt, *truth) for prompt, truth in found} <= wholes
    assert len(found) == len({row for row in range(len(batch["input_ids"])) if max(np.bincount(batch["segment_ids"][row])[1:]) >= 22})
    assert all(len(prompt) == 10 and len(truth) == 12 for prompt, truth in found)
    assert len(heldout_prompts(batch, num=1, prompt_tokens=10, new_tokens=12)) == 1
    assert heldout_prompts(batch, num=10, prompt_tokens=40, new_tokens=40) == []
