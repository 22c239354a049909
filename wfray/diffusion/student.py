"""Block-diffusion students on disk, and as training sees them.

A directory is that of a student (`wfray.student.checkpoint`) with a mask token in tokenizer and embedding, the block size in
`config.json` (`wrinklefree.diffusion`), and `dlm_config.json`, which says how it was trained and how it is meant to be decoded.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wfray.config.diffuse import DiffuseConfig
from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.diffusion.attention import use_block_attention
from wfray.diffusion.forward import DiffusionForward
from wfray.diffusion.mask_token import add_mask_token
from wfray.diffusion.noise import EPS
from wfray.quant import hold_codes
from wfray.student import load_student, save_student
from wfray.student.forward import Forward
from wfray.student.segments import Segments

FILE = "dlm_config.json"


class Method(BaseModel):
    """The content of `dlm_config.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    method: Literal["fast-dllm-v2"] = "fast-dllm-v2"
    """arXiv 2509.26328."""
    block_size: int
    sub_block_size: int
    mask_token: str
    mask_token_id: int
    token_shift: Literal[True] = True
    """The state at i - 1 predicts token i."""
    complementary_masks: Literal[True] = True
    noise_eps: float = EPS
    threshold: float = 0.9
    """Of acceptance, unless whoever decodes says otherwise."""
    tokenizer_sha256: str
    """Of the tokenizer without the mask token: the one that texts are packed with."""
    objectives: list[dict[str, Any]] = []
    trained_tokens: int = 0
    """Packed tokens of all stages of this kind."""


@dataclass(frozen=True)
class Diffuser:
    """A loaded block-diffusion student."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    method: Method
    stop_ids: frozenset[int]
    """Tokens that end an answer: the tokenizer's, and those of `generation_config.json`."""


def load_diffuser(directory: Path, dtype: torch.dtype = torch.float32) -> Diffuser:
    """Load a block-diffusion student in evaluation mode.

    Raises:
        ValueError: the directory holds none, or its mask token is missing.
    """
    method = read_method(directory)
    tokenizer = load_directory_tokenizer(directory)
    if tokenizer.mask_token_id != method.mask_token_id:
        raise ValueError(
            f"the tokenizer in {str(directory)!r} has the mask token {tokenizer.mask_token!r} (id {tokenizer.mask_token_id}), "
            f"{FILE} says {method.mask_token!r} (id {method.mask_token_id}): take both from the stage that made the student"
        )
    model = load_student(directory, dtype)
    if model.config.vocab_size <= method.mask_token_id:
        raise ValueError(
            f"the embedding in {str(directory)!r} has no row for the mask token {method.mask_token_id}: run jobs.diffuse again"
        )
    use_block_attention(model)
    return Diffuser(model, tokenizer, method, stop_ids(directory, tokenizer))


def stop_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """See `Diffuser.stop_ids`."""
    file = directory / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    ends = found if isinstance(found, list) else [found]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if isinstance(end, int))


def prepare_for_inference(model: PreTrainedModel, precision: torch.dtype, device: str = "cpu") -> None:
    """Move to `device`, quantize once and turn all other weights into `precision`, in place; the codes are those of the float32 weights.

    Buffers stay as they are: rotary frequencies in bfloat16 are off by a radian after some hundred positions.
    """
    torch.nn.Module.to(model, device)
    # Codes are made where the weights are, and do not move with them.
    hold_codes(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(precision)


def read_method(directory: Path) -> Method:
    """Read `dlm_config.json`.

    Raises:
        ValueError: there is none, or it is not valid.
    """
    path = directory / FILE
    if not path.is_file():
        raise ValueError(
            f"{str(directory)!r} holds no {FILE}: it is no block-diffusion student and has no mask token; run jobs.diffuse on it"
        )
    try:
        return Method.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{str(path)!r} is not valid: {error}; run jobs.diffuse again") from None


def chosen_block_size(method: Method, wanted: int | None) -> int:
    """The block size to decode or measure with; one that the student was not trained for is warned of."""
    if wanted is None or wanted == method.block_size:
        return method.block_size
    warnings.warn(f"block size {wanted}: the student was trained for blocks of {method.block_size}, so expect worse answers", stacklevel=2)
    return wanted


def save_diffuser(diffuser: Diffuser, directory: Path, source: Path) -> None:
    """Write a block-diffusion student into `directory`, which must not exist yet.

    Args:
        diffuser: what is written.
        directory: the new directory.
        source: where files that belong to the tokenizer but are not written by it come from.
    """
    method = diffuser.method
    described = {"block_size": method.block_size, "mask_token_id": method.mask_token_id}
    diffuser.model.config.wrinklefree = {**diffuser.model.config.wrinklefree, "diffusion": described}
    save_student(diffuser.model, directory, tokenizer_from=source)
    diffuser.tokenizer.save_pretrained(directory)
    (directory / FILE).write_text(json.dumps(method.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class DiffusionStudent:
    """What training must know of a block-diffusion student; implements `wfray.student.kind.StudentKind`."""

    forward: Forward

    def __init__(self, config: DiffuseConfig) -> None:
        self.config = config

    def load(self, directory: Path) -> PreTrainedModel:
        """An autoregressive student gets a mask token; a block-diffusion one keeps its own, as trained.

        Raises:
            ValueError: the directory is no student, or has another mask token than the configuration names.
        """
        if (directory / FILE).is_file():
            diffuser = load_diffuser(directory)
            self.model, self.tokenizer, known = diffuser.model, diffuser.tokenizer, diffuser.method
            if known.mask_token != self.config.mask_token:
                raise ValueError(
                    f"the student's mask token is {known.mask_token!r}: set mask_token to that, not {self.config.mask_token!r}"
                )
            chosen_block_size(known, self.config.block_size)
            mask_id, self.tokenizer_sha256, before = known.mask_token_id, known.tokenizer_sha256, known.trained_tokens
        else:
            self.model, self.tokenizer, before = load_student(directory), load_directory_tokenizer(directory), 0
            self.tokenizer_sha256 = tokenizer_sha256(self.tokenizer)
            mask_id = add_mask_token(self.model, self.tokenizer, self.config.mask_token)
            use_block_attention(self.model)
        self.vocab_size: int = mask_id
        self.method = self._method(mask_id, before)
        self.forward = self.blocks = DiffusionForward(self.config.train.seed, self.config.block_size, mask_id)
        return self.model

    def _method(self, mask_id: int, tokens_before: int) -> Method:
        return Method(
            block_size=self.config.block_size,
            sub_block_size=self.config.sub_block_size,
            mask_token=self.config.mask_token,
            mask_token_id=mask_id,
            tokenizer_sha256=self.tokenizer_sha256,
            objectives=[objective.model_dump(mode="json") for objective in self.config.objectives],
            trained_tokens=tokens_before,
        )

    def related(self, batch: dict[str, Tensor]) -> Segments:
        """See `StudentKind`: blocks of the first noisy copy."""
        return self.blocks.row_of(batch).noisy

    def save(self, model: PreTrainedModel, directory: Path, source: Path, tokens: int) -> None:
        """See `StudentKind`."""
        method = self.method.model_copy(update={"trained_tokens": self.method.trained_tokens + tokens})
        save_diffuser(Diffuser(model, self.tokenizer, method, stop_ids(source, self.tokenizer)), directory, source)
