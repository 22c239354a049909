"""The documents of a batch, found in its segment ids."""

import torch

from wfray.student.segments import Segments


def test_segments_are_runs_of_equal_ids(packed: dict[str, torch.Tensor]) -> None:
    segments = Segments.of(packed["segment_ids"])
    assert segments.documents == ((0, 0, 5), (0, 5, 12), (1, 0, 9))
    assert segments.spans == (*segments.documents, (1, 9, 12))
    assert segments.longest == 9


def test_a_row_may_be_one_document_or_nothing_but_padding() -> None:
    segments = Segments.of(torch.tensor([[1, 1, 1], [0, 0, 0], [1, 2, 3]]))
    assert segments.spans == ((0, 0, 3), (1, 0, 3), (2, 0, 1), (2, 1, 2), (2, 2, 3))
    assert segments.documents == ((0, 0, 3), (2, 0, 1), (2, 1, 2), (2, 2, 3))
    assert Segments.whole_rows(2, 5).spans == ((0, 0, 5), (1, 0, 5))
