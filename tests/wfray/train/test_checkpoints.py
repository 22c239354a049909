"""Checkpoints of one and of several gloo workers: read at another number of them to the bit, whole whatever happens."""

import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wfray.student.conftest import tiny_model
from tests.wfray.train.workers import run_workers
from wfray.config.convert import Subln
from wfray.config.optimizer import AdamW
from wfray.config.train import Training
from wfray.data.stream import Cursor
from wfray.student import convert
from wfray.train import CheckpointStore, Collective, Replica
from wfray.train.checkpoints import Progress, training_tensors
from wfray.train.collective import whole
from wfray.train.optimizer import make_optimizer

TRAINING = Training(
    tokens=80, batch_tokens=8, checkpoint_every_tokens=8, average={"decay": 0.9}, optimizer=AdamW(kind="adamw", learning_rate=0.1)
)


class Worker:
    """A student with an optimizer in the middle of its life, and their checkpoints."""

    def __init__(self, directory: Path, factor: float = 1.0) -> None:
        collective = Collective()
        self.model = convert(tiny_model("llama"), Subln(init="ones"))
        Replica(self.model, torch.float32, collective)
        with torch.no_grad():
            torch._foreach_mul_(list(self.model.parameters()), factor)
        self.optimizer = make_optimizer(self.model, TRAINING)
        self.store = CheckpointStore(directory, collective)

    def step(self) -> None:
        """A step of element-wise arithmetic only, the same to the bit on any number of workers."""
        for parameter in self.model.parameters():
            parameter.grad = parameter.detach() * 0.1
        self.optimizer.step()

    def save(self, step: int) -> None:
        self.store.save(
            self.model,
            self.optimizer,
            Progress(step=step, tokens=step, cursor=Cursor(corpus="c", split="train", seed=0, sources={}, history=[])),
        )

    def tensors(self) -> dict[str, Tensor]:
        return {name: whole(tensor).clone() for name, tensor in training_tensors(self.model, self.optimizer).items()}


def save(directory: Path) -> dict[str, Tensor]:
    """Save after one step; change everything while the write is under way."""
    worker = Worker(directory)
    worker.step()
    saved = worker.tensors()
    with worker.store:
        worker.save(1)
        worker.step()
    return saved


def load(directory: Path) -> dict[str, Tensor]:
    worker = Worker(directory, factor=2.0)
    newest = worker.store.newest()
    assert newest is not None and newest.name == "step-00000001"
    assert worker.store.load(newest, worker.model, worker.optimizer).step == 1
    return worker.tensors()


@pytest.mark.parametrize(("savers", "loaders"), [(2, [1, 4]), (1, [2])])
def test_a_checkpoint_is_read_at_any_number_of_workers_to_the_bit(tmp_path: Path, savers: int, loaders: list[int]) -> None:
    saved = run_workers(savers, save, tmp_path / "save", tmp_path / "checkpoints")
    for number in loaders:
        for loaded in run_workers(number, load, tmp_path / f"load{number}", tmp_path / "checkpoints"):
            torch.testing.assert_close(loaded, saved[0], rtol=0, atol=0)


def fill_the_disk(directory: Path) -> tuple[list[str], dict[str, Tensor]]:
    """Save once, then again when the last worker may write no file of more than 10 kB."""
    worker = Worker(directory)
    worker.step()
    worker.save(1)
    worker.store.finish()
    saved = worker.tensors()
    collective = worker.store.collective
    if collective.rank == collective.world_size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    worker.step()
    worker.save(2)
    messages = []
    for attempt in (worker.store.finish, worker.store.check):
        try:
            attempt()
        except ValueError as error:
            messages.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return messages, saved


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_an_error_on_every_worker_and_the_checkpoint_before_stays(tmp_path: Path, num_workers: int) -> None:
    answers = run_workers(num_workers, fill_the_disk, tmp_path / "save", tmp_path / "checkpoints")
    for messages, saved in answers:
        assert len(messages) == 2
        assert "could not be written" in messages[0] and "(File too large)" in messages[0].replace("[Errno 27] ", "")
        assert "step-00000001" in messages[0]
        torch.testing.assert_close(load(tmp_path / "checkpoints"), saved, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def save_under_a_file(directory: Path) -> str:
    """Save where no directory can be made; the message."""
    worker = Worker(directory)
    worker.step()
    worker.save(1)
    with pytest.raises(ValueError, match="could not be written") as raised:
        worker.store.finish()
    return str(raised.value)


def test_a_directory_that_cannot_be_made_is_an_error_on_every_worker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    messages = run_workers(2, save_under_a_file, tmp_path / "answers", tmp_path / "file" / "checkpoints")
    assert len(messages) == 2 and all("Not a directory" in message for message in messages)


class Dying(CheckpointStore):
    """Its process is killed when all tensors are on disk but nothing is committed."""

    def _commit(self, aside: Path, target: Path) -> None:
        if target.name == "step-00000002":
            signal.raise_signal(signal.SIGKILL)
        super()._commit(aside, target)


def die(directory: Path) -> None:
    worker = Worker(directory)
    worker.step()
    worker.store = Dying(directory, worker.store.collective)
    worker.save(1)
    worker.save(2)
    worker.store.finish()


def test_a_process_killed_in_mid_write_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    process = get_context("forkserver").Process(target=die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000002.partial", "step-00000001"]
    worker = Worker(tmp_path)
    worker.step()
    torch.testing.assert_close(load(tmp_path), worker.tensors(), rtol=0, atol=0)
    with worker.store:
        worker.save(3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"], "what the killed one left is gone too"


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    worker = Worker(tmp_path)
    worker.model.model.norm = torch.nn.RMSNorm(7)
    worker.optimizer = make_optimizer(worker.model, TRAINING)
    newest = worker.store.newest()
    assert newest is not None
    with pytest.raises(ValueError, match=r"step-00000001' is truncated or of another model \(.*norm.*\); delete it"):
        worker.store.load(newest, worker.model, worker.optimizer)
