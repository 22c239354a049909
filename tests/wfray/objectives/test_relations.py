"""Attention relations against a loop written from the paper: one row of one head of one document at a time."""

import math

import pytest
import torch
from torch import Tensor

from wfray.objectives import num_related, relation_loss
from wfray.objectives.relations import GROUP_ELEMENTS, States, check_split, group_documents
from wfray.student.segments import Segments

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3], [1, 1, 1, 1, 1, 0, 0, 0]])


def states(seed: int, heads: int = 4, width: int = 6) -> States:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, 8, width, generator=generator, dtype=torch.float64) for count in (heads, 2, 2))  # type: ignore[return-value]


def slow_relations(vectors: list[Tensor], split_heads: int | None) -> list[list[Tensor]]:
    """Per relation head, per row: the distribution over the document's tokens. `vectors` are [heads, width] a token."""
    if split_heads is None:
        heads = [[vector[h] for vector in vectors] for h in range(vectors[0].shape[0])]
        return [[torch.stack([row @ other / math.sqrt(len(row)) for other in head]).softmax(0) for row in head] for head in heads]
    joined = [vector.flatten() for vector in vectors]
    size = len(joined[0]) // split_heads
    slices = [[token[h * size : (h + 1) * size] for token in joined] for h in range(split_heads)]
    return [[torch.stack([row @ other / (row.norm() * other.norm()) for other in head]).softmax(0) for row in head] for head in slices]


def slow_loss(student: States, teacher: States, documents: list[tuple[int, int, int]], split_heads: int | None) -> tuple[Tensor, int]:
    total, num_rows = torch.zeros((), dtype=torch.float64), 0
    for row, start, end in documents:
        num_rows += end - start
        for ours, theirs in zip(student, teacher, strict=True):
            pair = [slow_relations([tensor[row, :, t] for t in range(start, end)], split_heads) for tensor in (ours, theirs)]
            for head_s, head_t in zip(*pair, strict=True):
                total = total + sum((t * (t / s).log()).sum() for s, t in zip(head_s, head_t, strict=True)) / len(pair[0])
    return total, num_rows


@pytest.mark.parametrize("elements", [1, 40, 2**19])
@pytest.mark.parametrize("split_heads", [None, 2])
def test_loss_and_gradients_equal_the_slow_loop(split_heads: int | None, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However documents and heads are grouped; those of one token and padding are left out."""
    monkeypatch.setitem(GROUP_ELEMENTS, "cpu", elements)
    student, teacher = states(0), states(1)
    for tensor in student:
        tensor.requires_grad_()
    wanted, num_rows = slow_loss(student, teacher, [(0, 0, 3), (0, 3, 7), (1, 0, 5)], split_heads)
    counted = num_related(Segments.of(SEGMENTS))
    total = relation_loss(student, teacher, Segments.of(SEGMENTS), split_heads)
    assert counted == num_rows
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    ours, reference = (torch.autograd.grad(3.0 * loss, student) for loss in (total, wanted))
    for gradient, slow in zip(ours, reference, strict=True):
        torch.testing.assert_close(gradient, slow, rtol=1e-9, atol=1e-12)


def test_documents_of_like_length_share_a_group_that_wastes_little() -> None:
    spans = [(0, 20), (20, 3), (23, 20), (43, 19), (62, 3), (65, 90), (155, 2), (157, 15)]
    groups = group_documents(spans, 1300)
    assert groups == [[(65, 90)], [(0, 20), (23, 20), (43, 19)], [(157, 15)], [(20, 3), (62, 3)], [(155, 2)]]
    assert group_documents(spans, 1) == [[span] for span in sorted(spans, key=lambda span: (-span[1], span[0]))]


def test_gradients_repeat_to_the_bit_and_autocast_changes_nothing() -> None:
    def once(enabled: bool) -> list[Tensor]:
        student = tuple(tensor.float().to(torch.bfloat16).requires_grad_() for tensor in states(0))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            total = relation_loss(student, states(1), Segments.of(SEGMENTS), 2)  # type: ignore[arg-type]
        return [total, *torch.autograd.grad(total, student)]

    assert all(torch.equal(first, second) for first, second in zip(once(True), once(False), strict=True))
    assert [gradient.dtype for gradient in once(True)[1:]] == [torch.bfloat16] * 3


def test_a_vector_of_zeros_has_relations_too() -> None:
    student, teacher = states(0), states(1)
    student[0][0, :, 1] = 0.0
    total = relation_loss(student, teacher, Segments.of(SEGMENTS), 2)
    student[0].requires_grad_()
    total = relation_loss(student, teacher, Segments.of(SEGMENTS), 2)
    total.backward()
    assert student[0].grad is not None and torch.isfinite(student[0].grad).all()


def test_equal_states_have_no_loss_and_other_documents_no_influence() -> None:
    student, teacher = states(0), states(0)
    assert relation_loss(student, teacher, Segments.of(SEGMENTS), 2).item() == pytest.approx(0.0, abs=1e-6)
    before = relation_loss(student, states(1), Segments.of(SEGMENTS), None)
    moved = tuple(tensor.clone() for tensor in student)
    for tensor in moved:
        tensor[1, :, 5:] = 9.0
    assert torch.equal(relation_loss(moved, states(1), Segments.of(SEGMENTS), None), before)  # type: ignore[arg-type]


def test_an_uneven_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split_heads 5 does not divide the width 24"):
        check_split([24, 12], 5)
