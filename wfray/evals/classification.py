"""Accuracy on the labelled examples of a corpus: which of the labels' words the model finds likeliest where the label stands.

An example is one segment of a packed row, as in training, and its label the span marked so (see `wfray.data.batch`). One forward
pass serves all examples of a row, and logits are formed at the labels' positions and for the labels' tokens alone: [N, L] of
them, not [B, T, V]. Words are told apart by their first token, so words that begin with the same one are refused; where each word
is a single token this is the choice that lm-eval makes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wfray.data.batch import PackedBatch, label_spans, make_batch
from wfray.data.corpus import PackedCorpus
from wfray.evals.scores import Accuracy
from wfray.student import hidden_states, lm_head_weight
from wfray.train.feed import as_tensors


def label_tokens(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[int]:
    """The first token of each word.

    Raises:
        ValueError: two words begin with the same token.
    """
    tokens = [int(tokenizer.encode(word, add_special_tokens=False)[0]) for word in words]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"labels {', '.join(words)}: two begin with the same token of this tokenizer; choose other words")
    return tokens


def labelled_rows(corpus: PackedCorpus, source: str) -> tuple[PackedBatch, NDArray[np.int64]]:
    """All held-out rows of a source, and where their labels stand [N, 3]: row, start, stop.

    Raises:
        ValueError: no example in them has a label.
    """
    numbers = np.arange(corpus.split(source, "heldout").num_rows, dtype=np.int64)
    rows = corpus.read_rows(source, "heldout", numbers.tolist())
    spans = label_spans(rows.segment_ids, rows.marks) if rows.marks is not None else np.zeros((0, 3), np.int64)
    if not len(spans):
        raise ValueError(f"source {source!r} has no labels: pack it with `chat: {{kind: classification, ...}}`")
    source_ids_B = np.full(len(numbers), corpus.source_names.index(source), dtype=np.int16)
    return make_batch(rows.input_ids, rows.segment_ids, source_ids_B, numbers, rows.marks), spans


@torch.no_grad()
def predict(model: PreTrainedModel, batch: dict[str, Tensor], spans_N3: Tensor, label_ids_L: Tensor, dtype: torch.dtype) -> Tensor:
    """The number of the likeliest label of each example [N].

    Args:
        model: a student or an original.
        batch: `input_ids`, `position_ids`, `segment_ids`, each [B, T].
        spans_N3: row, start and stop of each label.
        label_ids_L: first token of each label.
        dtype: of the products, by autocast; float32 switches it off.
    """
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden_BTC = hidden_states(model, batch)
    hidden_NC = hidden_BTC[spans_N3[:, 0], spans_N3[:, 1] - 1].float()
    return (hidden_NC @ lm_head_weight(model)[label_ids_L].float().T).argmax(-1)


def accuracy(
    model: PreTrainedModel, batch: PackedBatch, spans: NDArray[np.int64], label_ids: list[int], batch_rows: int, dtype: torch.dtype
) -> Accuracy:
    """Answers to all examples of a batch, `batch_rows` rows at a time.

    Raises:
        ValueError: an example's label is none of `label_ids`.
    """
    truth = batch["input_ids"][spans[:, 0], spans[:, 1]]
    if strangers := sorted(set(truth.tolist()) - set(label_ids)):
        raise ValueError(f"labels of the corpus begin with tokens {strangers}, which begin none of the labels asked for: name all labels")
    answers: list[int] = []
    ids_L = torch.tensor(label_ids, device=model.device)
    for first in range(0, len(batch["input_ids"]), batch_rows):
        inside = (spans[:, 0] >= first) & (spans[:, 0] < first + batch_rows)
        tensors = {name: part.to(model.device) for name, part in as_tensors(batch, slice(first, first + batch_rows)).items()}
        if inside.any():
            part = torch.from_numpy(spans[inside] - [first, 0, 0]).to(model.device)
            answers += predict(model, tensors, part, ids_L, dtype).tolist()
    return Accuracy(truth=[label_ids.index(token) for token in truth.tolist()], answers=answers)
