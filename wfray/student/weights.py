"""The weights of a model directory, and the one place that knows their files.

A small model is one `model.safetensors`; one above `MAX_SHARD_BYTES` is `model-00001-of-0000N.safetensors` and so on with
`model.safetensors.index.json`, which says where each tensor is: the layout that Hugging Face's tools read and write.

Reading maps files into memory and copies nothing: a tensor becomes resident when it is used, and goes when it is dropped. Writing
holds the tensors of one shard in the dtype of the file, so a model passes through in one copy and a shard.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wfray.runs.files import sha256_of

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 2 * 2**30


class Weights(Mapping[str, Tensor]):
    """The tensors of a model directory by name, each mapped into memory when it is asked for."""

    def __init__(self, directory: Path) -> None:
        """Read the names of all tensors, and check that every file is whole and that the index fits it.

        Raises:
            ValueError: files are missing, truncated, foreign, or do not belong together.
        """
        self.directory = directory
        self.files = weight_files(directory)
        self._file_of = {name: file for file in self.files for name in names_in(directory / file)}
        if len(self.files) > 1 or self.files[0] != SINGLE:
            check_index(directory, self._file_of)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise KeyError(name)
        with safe_open(self.directory / self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def select(self, names: Iterable[str]) -> "Weights":
        """These tensors alone."""
        selected = copy(self)
        selected._file_of = {name: self._file_of[name] for name in names}
        return selected

    def load(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors in `dtype`; those that are stored in it stay mapped to their files."""
        return {name: tensor.to(dtype) for name, tensor in self.items()}

    def sha256(self) -> str:
        """SHA-256 (hex) of the only file; of several: of their names and hashes."""
        hashes = {file: sha256_of(self.directory / file) for file in self.files}
        if len(hashes) == 1:
            return next(iter(hashes.values()))
        return hashlib.sha256("".join(f"{file}\0{digest}\n" for file, digest in hashes.items()).encode()).hexdigest()


def weight_files(directory: Path) -> list[str]:
    """The names of the weight files of a model directory, in order."""
    has_single, has_index = (directory / SINGLE).is_file(), (directory / INDEX).is_file()
    if has_single and has_index:
        raise ValueError(f"{str(directory)!r} holds {SINGLE} and {INDEX}: two models in one directory; delete the one that is stale")
    if has_single:
        return [SINGLE]
    if has_index:
        return sorted(set(read_index(directory).values()))
    raise ValueError(
        f"weights {str(directory / SINGLE)!r} are missing, and there is no {INDEX}; run the stage that makes them again "
        "(of other formats than safetensors nothing is read: save such a checkpoint as safetensors first)"
    )


def read_index(directory: Path) -> dict[str, str]:
    """Tensor -> file, from the index; the files must lie in the directory itself."""
    path = directory / INDEX
    try:
        file_of = {name: str(file) for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"index {str(path)!r} is truncated or foreign ({error!r}); run the stage that makes it again") from None
    missing = sorted(name for name in set(file_of.values()) if Path(name).name != name or not (directory / name).is_file())
    if missing or not file_of:
        raise ValueError(
            f"index {str(path)!r} names {', '.join(missing[:3]) or 'no file'}, which is not in its directory: copy the missing shards "
            "there, or run the stage that makes them again"
        )
    return file_of


def names_in(path: Path) -> list[str]:
    """The names of the tensors in one safetensors file.

    Raises:
        ValueError: the file is truncated or foreign.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(
            f"weights {str(path)!r} cannot be read ({error}): truncated or foreign; run the stage that makes them again"
        ) from None


def check_index(directory: Path, found: dict[str, str]) -> None:
    """Raise `ValueError` when the index and its shards are of different models."""
    differing = sorted({name for name, _ in read_index(directory).items() ^ found.items()})
    if differing:
        raise ValueError(
            f"index {str(directory / INDEX)!r} and its shards disagree about {', '.join(differing[:3])}: they are of different models; "
            "copy all files from one place, or run the stage that makes them again"
        )


def write_weights(directory: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `tensors` into `directory` in `dtype`, one file or shards; equal tensors make equal files.

    Args:
        directory: exists and holds no weights.
        tensors: by name; `Weights` for instance, whose tensors are read as they are written.
        max_shard_bytes: a larger tensor has a shard of its own.
    """
    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.numel() * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name].detach().to(dtype).contiguous() for name in names}, directory / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
