"""Checkpoints of a stage: `checkpoints/step-00000040/`, whole or absent.

Tensors (weights, optimizer states) go through torch's distributed checkpoint (DCP), which can be read at another number of
workers; the typed rest (step, tokens, cursor) is `progress.json` beside them. Everything is written to a directory aside, flushed,
and renamed by rank 0, so the newest directory of this name is the newest committed checkpoint. The one before it is kept until
then.
"""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel
from torch import Tensor, nn

from wfray.data.stream import Cursor
from wfray.runs.files import flush_tree, remove
from wfray.train.collective import Collective
from wfray.train.state import TrainingState


class Progress(BaseModel):
    """Where a stage stands, besides its tensors."""

    step: int
    """Steps done."""
    tokens: int
    cursor: Cursor
    state: TrainingState = TrainingState()


class CheckpointStore:
    """The checkpoints of one stage directory."""

    def __init__(self, directory: Path, collective: Collective) -> None:
        self.directory, self.collective = directory, collective

    def newest(self) -> Path | None:
        """The newest committed checkpoint, or None."""
        return max(self.directory.glob("step-*"), default=None)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
        """Commit a checkpoint and delete older ones."""
        target = self.directory / f"step-{progress.step:08d}"
        aside = self.directory / f".{target.name}.partial"
        if self.collective.rank == 0:
            remove(aside)
            aside.mkdir(parents=True)
        self.collective.barrier()
        dcp.save(training_tensors(model, optimizer), checkpoint_id=aside / "tensors")
        self.collective.barrier()
        if self.collective.rank == 0:
            (aside / "progress.json").write_text(progress.model_dump_json(indent=2), encoding="utf-8")
            flush_tree(aside)
            older = list(self.directory.glob("step-*"))
            aside.rename(target)
            for path in older:
                remove(path)
        self.collective.barrier()
        return target

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Read a checkpoint into a model and its optimizer.

        Raises:
            ValueError: it is truncated or belongs to another model.
        """
        try:
            progress = Progress.model_validate_json((path / "progress.json").read_text(encoding="utf-8"))
            dcp.load(training_tensors(model, optimizer), checkpoint_id=path / "tensors")
        except (dcp.CheckpointException, OSError, EOFError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"checkpoint {str(path)!r} is truncated or of another model ({reason:.200}); "
                "delete it to start this stage again from its parent"
            ) from error
        return progress


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer states under flat names; a tied weight appears once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.data
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors
