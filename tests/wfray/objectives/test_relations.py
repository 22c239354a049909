"""Attention relations against a loop written from the paper: one row of one head of one document at a time."""

import math

import pytest
import torch
from torch import Tensor

from wfray.objectives import relation_loss
from wfray.objectives.relations import check_split
from wfray.student.attention import Segments

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3], [1, 1, 1, 1, 1, 0, 0, 0]])


def states(seed: int, heads: int = 4, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, 8, width, generator=generator) for count in (heads, 2, 2))  # type: ignore[return-value]


def slow_relations(vectors: list[Tensor], split_heads: int | None) -> list[list[Tensor]]:
    """Per relation head, per row: the distribution over the document's tokens. `vectors` are [heads, width] a token."""
    if split_heads is None:
        heads = [[vector[h] for vector in vectors] for h in range(vectors[0].shape[0])]
        return [[torch.stack([row @ other / math.sqrt(len(row)) for other in head]).softmax(0) for row in head] for head in heads]
    joined = [vector.flatten() for vector in vectors]
    size = len(joined[0]) // split_heads
    slices = [[token[h * size : (h + 1) * size] for token in joined] for h in range(split_heads)]
    return [[torch.stack([row @ other / (row.norm() * other.norm()) for other in head]).softmax(0) for row in head] for head in slices]


@pytest.mark.parametrize("split_heads", [None, 2])
def test_the_loss_equals_the_slow_loop(split_heads: int | None) -> None:
    student, teacher = states(0), states(1)
    wanted, num_rows = 0.0, 0
    for row, start, end in [(0, 0, 3), (0, 3, 7), (1, 0, 5)]:
        num_rows += end - start
        for ours, theirs in zip(student, teacher, strict=True):
            pair = [slow_relations([tensor[row, :, t] for t in range(start, end)], split_heads) for tensor in (ours, theirs)]
            for head_s, head_t in zip(*pair, strict=True):
                wanted += sum((t * (t / s).log()).sum().item() for s, t in zip(head_s, head_t, strict=True)) / len(pair[0])
    total, counted = relation_loss(student, teacher, Segments.of(SEGMENTS), split_heads)
    assert counted == num_rows
    assert total.item() == pytest.approx(wanted, rel=1e-4)


def test_equal_states_have_no_loss_and_other_documents_no_influence() -> None:
    student, teacher = states(0), states(0)
    assert relation_loss(student, teacher, Segments.of(SEGMENTS), 2)[0].item() == pytest.approx(0.0, abs=1e-6)
    before = relation_loss(student, states(1), Segments.of(SEGMENTS), None)[0]
    moved = tuple(tensor.clone() for tensor in student)
    for tensor in moved:
        tensor[1, :, 5:] = 9.0
    assert torch.equal(relation_loss(moved, states(1), Segments.of(SEGMENTS), None)[0], before)  # type: ignore[arg-type]


def test_an_uneven_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split_heads 5 does not divide the width 24"):
        check_split([24, 12], 5)
