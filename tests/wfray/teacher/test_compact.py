"""Cache entries come back to the bit, and a changed byte is noticed."""

import numpy as np
import pytest

from wfray.teacher import SignalRequest, TransformersEngine
from wfray.teacher.compact import DamagedEntry, pack_entry, unpack_entry

REQUEST = SignalRequest(wires=["hidden", "layers", "qkv", "topk", "sampled", "logits"], num_ids=6, qkv_layer=1, temperature=2.0)


@pytest.fixture(scope="module")
def answer(engine: TransformersEngine) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, 100, (3, 40), dtype=np.int32)
    positions = np.tile(np.arange(40, dtype=np.int32), (3, 1))
    return engine.signals({"input_ids": ids, "position_ids": positions, "segment_ids": np.ones_like(ids)}, REQUEST)


def test_every_array_comes_back_to_the_bit(answer: dict[str, np.ndarray]) -> None:
    found = unpack_entry(pack_entry(answer))
    assert set(found) == set(answer)
    for name, array in answer.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def test_any_bits_come_back() -> None:
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 2**16, (4, 9, 7), dtype=np.uint16)
    arrays = {"topk_log_probs": bits.view(np.float16), "topk_ids": bits.astype(np.int32), "hidden": bits, "topk_temperature": np.array(1.5)}
    found = unpack_entry(pack_entry(arrays))
    assert all(found[name].tobytes() == array.tobytes() and found[name].shape == array.shape for name, array in arrays.items())


@pytest.mark.parametrize("place", [0, 31, 32, 100, -1])
def test_a_changed_byte_is_noticed(answer: dict[str, np.ndarray], place: int) -> None:
    entry = bytearray(pack_entry(answer))
    entry[place] ^= 1
    with pytest.raises(DamagedEntry):
        unpack_entry(bytes(entry))


def test_a_truncated_entry_is_noticed(answer: dict[str, np.ndarray]) -> None:
    entry = pack_entry(answer)
    for length in (0, 10, 32, len(entry) - 1):
        with pytest.raises(DamagedEntry):
            unpack_entry(entry[:length])


def test_entries_are_smaller_than_the_wire() -> None:
    """Of signals as real ones are: normal activations, falling log-probabilities."""
    generator = np.random.default_rng(0)
    hidden = (generator.standard_normal((1, 256, 64)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    log_probs = -np.sort(generator.exponential(2.0, (1, 256, 65)).astype(np.float16), axis=-1)
    assert len(pack_entry({"hidden": hidden})) < 0.8 * hidden.nbytes
    assert len(pack_entry({"topk_log_probs": log_probs})) < 0.62 * log_probs.nbytes
