"""Headers of real files, whole and damaged."""

from pathlib import Path

import pytest

from wfray.config.export import GGUF
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.gguf_header import metadata, stored_tensors


@pytest.fixture(scope="module")
def file(small: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("header") / "model.gguf"
    write_bitnet(small[1], target, GGUF(kind="gguf"))
    return target


@pytest.mark.parametrize("length", [0, 23, 30, 200, 2_000, 10_000])
def test_a_file_that_is_cut_off_in_its_header_is_refused(file: Path, tmp_path: Path, length: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut\.gguf' is (no GGUF file|cut off or damaged)"):
        stored_tensors(cut)


@pytest.mark.parametrize(
    ("value", "message"), [(b"\xff" * 8, "cut off or damaged"), (b"\x00" * 8, "is damaged: its metadata has a value of type")]
)
def test_a_length_or_a_type_that_cannot_be_is_refused(file: Path, tmp_path: Path, value: bytes, message: str) -> None:
    """The first name's length, of all ones; or of nothing, upon which its letters are read as a type."""
    damaged = tmp_path / "damaged.gguf"
    data = file.read_bytes()
    damaged.write_bytes(data[:24] + value + data[32:])
    with pytest.raises(ValueError, match=message):
        metadata(damaged)
