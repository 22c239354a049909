"""Weights & Biases offline, for real: the figures that it holds are those of metrics.jsonl, in one run however often it restarts."""

import json
import struct
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from tests.wfray.train.conftest import config
from wfray.config.train import TrainConfig
from wfray.runs import read_metrics
from wfray.train.tracking import open_log

FULL, LAST = 1, 4
"""Kinds of chunks that end a record."""


def tracked(**tracking: Any) -> TrainConfig:
    return config({"tracking": {"project": "tests", **tracking}})


def read_offline_run(path: Path) -> list[Record]:
    """The records of a `.wandb` file: a LevelDB log, that is chunks in blocks of 32 KiB, after a header of 7 bytes."""
    data, position, whole, records = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            records.append(Record.FromString(whole))
            whole = b""
    return records


def history_of(records: list[Record]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in values.items() if not name.startswith("_")})
    return rows


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_a_restarted_stage_goes_on_in_the_same_run_with_the_same_figures(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "pretrain"
    stage.mkdir(parents=True)
    for first in (0, 2):
        with open_log(tracked(), stage, rank=0, resume_step=first) as log:
            for step in range(first + 1, first + 3):
                log(step=step, tokens=128 * step, loss=1 / step, refused="never", progress=step / 4)
    files = sorted((stage / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    records = [read_offline_run(path) for path in files]
    runs = [record.run for part in records for record in part if record.WhichOneof("record_type") == "run"]
    assert len(files) == 2 and {run.run_id for run in runs} == {(stage / "wandb_run_id").read_text()}
    assert {(run.project, run.display_name, run.run_group, run.job_type) for run in runs} == {("tests", "run/pretrain", "run", "pretrain")}
    stated = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert stated["train"]["optimizer"] == tracked().model_dump(mode="json")["train"]["optimizer"]
    rows = [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(stage / "metrics.jsonl")]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row for part in records for row in history_of(part)] == rows


def test_no_process_that_could_still_write_outlives_the_stage(tmp_path: Path) -> None:
    with open_log(tracked(), tmp_path, rank=0, resume_step=0) as log:
        log(step=1, tokens=128, loss=1.0)
        assert writers()
    assert not writers()


def writers() -> list[psutil.Process]:
    """The processes by which W&B writes for this one."""
    return [process for process in psutil.Process().children(recursive=True) if "wandb" in process.name()]


@pytest.mark.parametrize(("settings", "rank"), [(config(), 0), (tracked(), 1)], ids=["not configured", "not the first worker"])
def test_only_the_first_worker_of_a_tracked_stage_starts_a_run(tmp_path: Path, settings: TrainConfig, rank: int) -> None:
    with open_log(settings, tmp_path, rank=rank, resume_step=0) as log:
        log(step=1, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == [".rank1.jsonl" if rank else "metrics.jsonl"]


def test_online_without_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="online needs a key: set WANDB_API_KEY, or set tracking.mode=offline"):
        with open_log(tracked(mode="online"), tmp_path, rank=0, resume_step=0):
            pass


def test_tracking_is_no_part_of_what_a_stage_is() -> None:
    assert tracked().digest() == config().digest()
