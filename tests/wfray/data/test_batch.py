"""Derived targets and positions against a slow loop."""

import numpy as np
import pytest

from wfray.data.batch import make_batch


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
