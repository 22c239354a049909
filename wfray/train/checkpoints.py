"""Checkpoints of a stage: `checkpoints/step-00000040/`, whole or absent, written while training goes on.

Tensors (weights, optimizer states) go through torch's distributed checkpoint (DCP), which can be read at another number of
workers; the typed rest (step, tokens, cursor, training state) is `progress.json` beside them.

Training stands still for one copy of this worker's tensors into buffers in main memory, which are kept for the next time (12 bytes a
weight, divided by the workers). A thread of low priority then writes them to a directory aside and flushes it; rank 0 renames it, so the
newest directory of this name is the newest committed checkpoint, and deletes older ones, renamed first, only then. At most one write is
under way: a checkpoint that comes sooner waits. Where a write fails, as on a full disk, every worker raises at its next step.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from wfray.data.stream import Cursor
from wfray.runs.files import flush, flush_tree, remove
from wfray.train.collective import Collective
from wfray.train.state import TrainingState

NICENESS = 10
PARTIAL = ".partial"
"""Ends the hidden name of a checkpoint that is being written or deleted."""


class Progress(BaseModel):
    """Where a stage stands, besides its tensors."""

    step: int
    """Steps done."""
    tokens: int
    cursor: Cursor
    state: TrainingState = TrainingState()


class CheckpointStore:
    """The checkpoints of one stage directory. As a context manager it waits for the write under way, whatever ends the training."""

    def __init__(self, directory: Path, collective: Collective) -> None:
        self.directory, self.collective = directory, collective
        self._staging = Staging(collective)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint", initializer=yield_to_training)
        self._pending: Future[None] | None = None

    def newest(self) -> Path | None:
        """The newest committed checkpoint, or None; a write under way is waited for."""
        if self._pending:
            self._pending.exception()
        return max(self.directory.glob("step-*"), default=None)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Copy everything and begin to write it; the weights may change at once.

        Raises:
            ValueError: the write before this one failed.
        """
        self.finish()
        staged = self._staging.copy(training_tensors(model, optimizer))
        self._pending = self._writer.submit(self._write, staged, progress.model_copy(deep=True))

    def check(self) -> None:
        """Raise on all workers, which must call this together, where the last write has failed on one.

        Raises:
            ValueError: it has; the message names the reason and the newest whole checkpoint.
        """
        error = self._pending.exception() if self._pending and self._pending.done() else None
        if self.collective.sum_floats({"failed": float(error is not None)})["failed"]:
            raise ValueError(
                f"a checkpoint could not be written to {str(self.directory)!r} ({reason_of(error)}): mend that and run the job again. "
                f"It goes on from {self.newest() or 'the stage before'}, which is whole"
            ) from error

    def finish(self) -> None:
        """Wait until the last write is committed; raises as `check` does."""
        if self._pending:
            self._pending.exception()
            self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.shutdown(wait=True)
        if error is None:
            self.finish()

    def _write(self, staged: dict[str, Tensor], progress: Progress) -> None:
        target = self.directory / f"step-{progress.step:08d}"
        aside = self.directory / f".{target.name}{PARTIAL}"
        self._prepare(aside)
        if self.collective.rank:
            self._write_tensors(staged, aside)
            return
        try:
            self._write_tensors(staged, aside)
            (aside / "progress.json").write_text(progress.model_dump_json(indent=2), encoding="utf-8")
            self._commit(aside, target)
        finally:
            remove(aside)

    def _prepare(self, aside: Path) -> None:
        """Clear what interrupted writes left and make `aside`, before any worker writes into it; all raise where that fails."""
        failed: list[OSError | None] = [None]
        if self.collective.rank == 0:
            try:
                for left in self.directory.glob(f".step-*{PARTIAL}"):
                    remove(left)
                aside.mkdir(parents=True)
            except OSError as error:
                failed = [error]
        if self.collective.background is not None:
            dist.broadcast_object_list(failed, src=0, group=self.collective.background)
        if failed[0] is not None:
            raise failed[0]

    def _write_tensors(self, staged: dict[str, Tensor], aside: Path) -> None:
        alone = self.collective.world_size == 1
        dcp.save(staged, checkpoint_id=aside / "tensors", process_group=self.collective.background, no_dist=alone)

    def _commit(self, aside: Path, target: Path) -> None:
        flush_tree(aside)
        older = list(self.directory.glob("step-*"))
        aside.rename(target)
        flush(self.directory)
        for path in older:
            remove(path.rename(self.directory / f".{path.name}{PARTIAL}"))

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Read a checkpoint, written by any number of workers, into a model and its optimizer.

        Raises:
            ValueError: it is truncated or belongs to another model.
        """
        alone = self.collective.world_size == 1
        try:
            progress = Progress.model_validate_json((path / "progress.json").read_text(encoding="utf-8"))
            tensors = training_tensors(model, optimizer)
            dcp.load(tensors, checkpoint_id=path / "tensors", process_group=self.collective.group, no_dist=alone)
        except (dcp.CheckpointException, OSError, ValueError) as error:
            raise ValueError(
                f"checkpoint {str(path)!r} is truncated or of another model ({reason_of(error)}); "
                "delete it to start this stage again from its parent"
            ) from error
        return progress


class Staging:
    """Copies of tensors in main memory, in buffers that are kept."""

    def __init__(self, collective: Collective) -> None:
        group = collective.background
        self._mesh = DeviceMesh.from_group(group, "cpu") if group else None
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they stand; valid until the next call. A sharded one stays sharded."""
        staged = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return staged

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if name not in self._buffers:
            self._buffers[name] = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
        buffer = self._buffers[name].copy_(local, non_blocking=True)
        if not isinstance(tensor, DTensor):
            return buffer
        return DTensor.from_local(buffer, self._mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def yield_to_training() -> None:
    """Give this thread a low priority; on Linux a thread has its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer states under flat names; a tied weight appears once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.data
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def reason_of(error: BaseException | None) -> str:
    """What went wrong, in one line: the first worker's reason where DCP has collected several."""
    if error is None:
        return "on another worker"
    if isinstance(error, dcp.CheckpointException):
        error = next((failure[0] for failure in error.failures.values()), error)
    lines = str(error).strip().splitlines()
    return f"{lines[-1] if lines else type(error).__name__:.200}"
