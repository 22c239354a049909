"""Training on a real local Ray: two gloo workers, one of them killed with -9, a cluster with room for fewer, mistakes."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from actors.student import train_student
from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.config.data import PackConfig
from wfray.config.train import TrainConfig
from wfray.data.shards import write_index
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import read_metrics
from wfray.student import convert, load_student, save_student

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
TINY = Path(__file__).parents[2] / "configs" / "pack" / "tiny.yaml"
STEP = 12 * SEQUENCE_LENGTH
NUM_STEPS, INTERVAL = 40, 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def inputs(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a corpus of one tokenizer."""
    directory = tmp_path_factory.mktemp("inputs")
    facts = save_tokenizer(PackConfig.load(TINY).tokenizer, directory / "tokenizer")
    save_student(convert(tiny_model("llama"), Subln(init="ones")), directory / "student", tokenizer_from=directory / "tokenizer")
    corpus = write_corpus(directory / "corpus", {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})
    write_index(corpus.directory, corpus.index.model_copy(update={"tokenizer_sha256": facts.tokenizer_sha256}))
    return directory / "student", corpus.directory


def config(**train: Any) -> TrainConfig:
    tree = {
        "run": "unused",
        "stage": "pretrain",
        "student": "unused",
        "quantization": {"schedule": "linear", "warmup_tokens": STEP},
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": NUM_STEPS * STEP,
            "batch_tokens": STEP,
            "micro_rows": 6,
            "checkpoint_every_tokens": INTERVAL * STEP,
            "optimizer": {"learning_rate": 1e-2},
            "threads": 1,
            "num_workers": 2,
            **train,
        },
    }
    return TrainConfig.parse(tree, "test")


def losses(directory: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(directory / "metrics.jsonl")}


def kill_a_worker(directory: Path) -> int:
    """Wait until a step after the second checkpoint is logged, then kill one of this cluster's training workers; the step."""
    deadline = time.monotonic() + 300
    while max(losses(directory), default=0) < 2 * INTERVAL + 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    step = max(losses(directory))
    workers = [process for process in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    return step


def test_a_worker_killed_in_mid_run_costs_less_than_an_interval_and_no_bit(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    train_student(config(), tmp_path / "whole", *inputs)
    whole = losses(tmp_path / "whole")
    assert len(whole) == NUM_STEPS and whole[NUM_STEPS] < whole[1] - 0.2
    assert {row["num_workers"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")} == {2}

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_a_worker, tmp_path / "killed")
        train_student(config(), tmp_path / "killed", *inputs)
    assert killing.result() < NUM_STEPS
    assert losses(tmp_path / "killed") == whole and not (tmp_path / "killed" / "checkpoints").exists()
    wanted, found = (load_student(tmp_path / name / "student").state_dict() for name in ("whole", "killed"))
    assert all(tensor.equal(found[name]) for name, tensor in wanted.items())


def test_fewer_workers_start_where_there_is_no_room_for_more(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    train_student(config(num_workers=[1, 4], micro_rows=1, tokens=3 * STEP, checkpoint_every_tokens=STEP), tmp_path, *inputs)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["num_workers"] for row in rows] == [2, 2, 2]


def test_a_mistake_on_several_workers_is_one_message(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"large": 40}, {"large": 1.0})
    with pytest.raises(ValueError, match="tokenizer") as raised:
        train_student(config(), tmp_path / "stage", inputs[0], corpus.directory)
    assert "Traceback" not in str(raised.value)


def test_a_batch_of_rows_that_some_number_of_workers_cannot_share_is_refused(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a step of 12 rows .* of 1 rows on 8 workers: .* x 8, for train.num_workers of 8"):
        train_student(config(num_workers=8, micro_rows=1), tmp_path, *inputs)
