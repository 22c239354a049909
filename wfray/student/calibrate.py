"""Calibration of SubLN: the root mean square of each projection's input, measured over real text in the original model.

The rows run one at a time in the dtype that the model holds, and squares are summed in float64, so what is added to the model's own
memory is the activations of one row. In bfloat16 an input is rounded by one part in 256 at most, in either direction, and the mean
over some million of them by far less.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wfray.config.convert import Subln
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.student.convert import normed_projections
from wfray.student.families import decoder_layers, family_of, projections
from wfray.student.forward import hidden_states

SEED = 0


def calibrate(model: PreTrainedModel, subln: Subln, corpus: Path, num_tokens: int) -> dict[str, float]:
    """Measure on the first rows of the training mix.

    Args:
        model: the original.
        subln: which projections are to be normed.
        corpus: a packed corpus directory.
        num_tokens: how much text, rounded down to rows, one row at least.

    Returns:
        see `measure_input_rms`.
    """

    def run() -> None:
        for row in calibration_rows(corpus, num_tokens):
            hidden_states(model, row)

    return measure_input_rms(model, subln, run)


def calibration_rows(corpus: Path, num_tokens: int, piece_tokens: int | None = None) -> Iterator[dict[str, Tensor]]:
    """The first rows of the training mix, each as a batch [1, T] for `run_body`.

    Args:
        corpus: a packed corpus directory.
        num_tokens: how much text, rounded down to rows, one row at least.
        piece_tokens: what documents are cut into, see `in_pieces`; None: left whole.
    """
    packed = PackedCorpus(corpus)
    stream = MixedStream(packed, "train", seed=SEED)
    for _ in range(max(1, num_tokens // packed.index.sequence_length)):
        row = stream.take(1)
        arrays: dict[str, np.ndarray] = {name: row[name] for name in ("input_ids", "position_ids", "segment_ids")}
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield batch if piece_tokens is None else in_pieces(batch, piece_tokens)


def in_pieces(batch: dict[str, Tensor], piece_tokens: int) -> dict[str, Tensor]:
    """The rows [B, T] of `batch` with every document cut into documents of `piece_tokens` tokens, the last one shorter."""
    position_ids = batch["position_ids"] % piece_tokens
    segment_ids = (position_ids == 0).cumsum(-1, dtype=torch.int32).where(batch["segment_ids"] > 0, 0)
    return {**batch, "position_ids": position_ids, "segment_ids": segment_ids}


@torch.no_grad()
def measure_input_rms(model: PreTrainedModel, subln: Subln, run: Callable[[], object]) -> dict[str, float]:
    """The root mean square of the input of each projection that `subln` will norm, while `run` runs the original model.

    Returns:
        `"<layer>.<projection>"` -> RMS over all tokens and features.
    """
    sums: dict[str, list[float]] = {}
    hooks = []
    for index, layer in enumerate(decoder_layers(model)):
        for parent, name in projections(layer, family_of(model.config)):
            if name in normed_projections(subln.placement):
                hooks.append(getattr(parent, name).register_forward_pre_hook(add_squares(sums, f"{index}.{name}")))
    run()
    for hook in hooks:
        hook.remove()
    return {key: (total / count) ** 0.5 for key, (total, count) in sums.items()}


def add_squares(sums: dict[str, list[float]], key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A forward pre-hook that adds the squares of a module's input, and their count, to `sums[key]`."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entry = sums.setdefault(key, [0.0, 0])
        entry[0] += args[0].double().square().sum().item()
        entry[1] += args[0].numel()

    return hook
