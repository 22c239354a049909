"""Derived targets and positions against a slow loop."""

import numpy as np
import pytest

from wfray.data.batch import CONTEXT, LABEL, NO_TARGET, RESPONSE, label_spans, make_batch


def random_segments(generator: np.random.Generator, num_rows: int, length: int) -> np.ndarray:
    """Rows of consecutive segments, with padding at the end of most."""
    segments = np.zeros((num_rows, length), dtype=np.int16)
    for row in segments:
        position, segment = 0, 1
        end = generator.integers(0, length + 1)
        while position < end:
            stop = min(position + generator.integers(1, 6), end)
            row[position:stop] = segment
            position, segment = stop, segment + 1
    return segments


@pytest.mark.parametrize("seed", range(5))
def test_targets_and_positions_equal_a_slow_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    segments = random_segments(generator, 8, 23)
    tokens = generator.integers(0, 50, size=segments.shape).astype(np.int32)
    batch = make_batch(tokens, segments, np.arange(8, dtype=np.int16), np.arange(100, 108))
    for b in range(8):
        position = 0
        for s in range(23):
            position = position + 1 if s and segments[b, s] == segments[b, s - 1] else 0
            assert batch["position_ids"][b, s] == position
            last = s == 22 or segments[b, s + 1] != segments[b, s] or segments[b, s] == 0
            assert batch["targets"][b, s] == (-100 if last else tokens[b, s + 1])
            assert batch["source_ids"][b, s] == b
    assert {key: value.dtype.name for key, value in batch.items()} == {
        "input_ids": "int32",
        "targets": "int32",
        "position_ids": "int32",
        "segment_ids": "int32",
        "source_ids": "int16",
        "sample_index": "int64",
    }
    assert batch["sample_index"].tolist() == list(range(100, 108))


@pytest.mark.parametrize("seed", range(3))
def test_context_is_never_predicted_and_labels_are_found(seed: int) -> None:
    generator = np.random.default_rng(seed)
    segments = random_segments(generator, 8, 23)
    tokens = generator.integers(0, 50, size=segments.shape).astype(np.int32)
    marks = generator.choice([CONTEXT, RESPONSE, LABEL], size=segments.shape).astype(np.uint8) * (segments > 0)
    numbers = np.arange(8)
    plain = make_batch(tokens, segments, numbers.astype(np.int16), numbers)
    batch = make_batch(tokens, segments, numbers.astype(np.int16), numbers, marks)
    spans = []
    for b in range(8):
        for s in range(23):
            learned = s < 22 and plain["targets"][b, s] != NO_TARGET and marks[b, s + 1] != CONTEXT
            assert batch["targets"][b, s] == (tokens[b, s + 1] if learned else NO_TARGET)
            if marks[b, s] != LABEL:
                continue
            if s and marks[b, s - 1] == LABEL and segments[b, s - 1] == segments[b, s]:
                spans[-1][2] += 1
            else:
                spans.append([b, s, s + 1])
    assert label_spans(segments, marks).tolist() == spans
