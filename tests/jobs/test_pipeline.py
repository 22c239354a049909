"""The tiny pipeline, every stage for real on a local Ray cluster of its own: done, skipped, served, killed with -9, resumed."""

import json
import re
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.jobs.pipelines import NUM_STEPS, family, finish, kill, pipeline_file, start, still_alive, wait_for
from wfray.runs import Manifest, read_metrics, stage_manifests

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

STAGES = ["pack", "convert", "align", "pretrain", "distill", "export", "evaluate", "serve"]
STUDENT = Path("distill/student/model.safetensors")
FIRST_KILL, SECOND_KILL = 12, 20


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run / "pretrain" / "metrics.jsonl")}


def newest_checkpoint(run: Path) -> int:
    """The step of the newest one of pre-training; 0 where there is none. A checkpoint is committed a while after its step."""
    steps = [int(path.name.removeprefix("step-")) for path in (run / "pretrain" / "checkpoints").glob("step-*")]
    return max(steps, default=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run: its pipeline file, and what it printed."""
    path = pipeline_file(tmp_path_factory.mktemp("whole"))
    return path, finish(start(path))


def test_every_stage_is_done_for_real(whole: tuple[Path, str]) -> None:
    run = whole[0].parent / "run"
    manifests = stage_manifests(run)
    assert list(manifests) == STAGES
    assert {manifest.status for manifest in manifests.values()} == {"complete"}
    assert all(manifest.outputs for manifest in manifests.values())
    assert manifests["pretrain"].parents["student"] == manifests["align"].identity
    assert len(losses(run)) == NUM_STEPS and losses(run)[NUM_STEPS] < losses(run)[1]
    assert (run / "export" / "model.gguf").read_bytes()[:4] == b"GGUF"
    exported = manifests["export"].figures
    assert all(file["parity"]["mean_kl"] < 1e-4 for file in [exported["model"], *exported["others"]])
    samples = json.loads((run / "serve" / "samples.json").read_text())
    assert samples and all(sample["completion_tokens"] > 0 for sample in samples)
    scores = manifests["evaluate"].figures["perplexity"]
    assert scores["distilled"]["all"] < scores["converted"]["all"]
    told = read_metrics(run / "evaluate" / "metrics.jsonl")
    assert [row["progress"] for row in told] == sorted(row["progress"] for row in told) and told[-1]["progress"] == 1.0
    assert told[-1]["message"].startswith("distilled on ") and told[-1]["message"].endswith(": continuations written")
    assert "<svg" in (run / "report.html").read_text()
    assert "minutes, peak resident memory" in whole[1]


def test_a_second_run_skips_everything_and_starts_no_cluster(whole: tuple[Path, str]) -> None:
    output = finish(start(whole[0]))
    assert output.count("skipped") == len(STAGES) + 1
    assert "started" not in output


def test_keep_on_a_finished_run_serves_it_until_the_cluster_is_killed(whole: tuple[Path, str]) -> None:
    output = finish(start(whole[0], "--keep"))
    pid = int(re.search(r"end it with: kill (\d+)", output)[1])  # type: ignore[index]
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    try:
        assert output.count("skipped") == len(STAGES) and "serve: done" in output
        command = re.search(r"^  curl .*", output, re.MULTILINE)[0]  # type: ignore[index]
        answer = json.loads(subprocess.run(shlex.split(command), capture_output=True, text=True, check=True).stdout)
        assert answer["choices"][0]["message"]["role"] == "assistant" and answer["usage"]["completion_tokens"] > 0
        processes[0].terminate()
        assert not still_alive(processes)
    finally:
        kill(processes)


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers of the training that the pipeline runs now."""
    found = []
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            found += [member] if "TrainWorker" in " ".join(member.cmdline()) else []
    return found


def test_killed_workers_and_drivers_resume_to_the_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    """`kill -9` of the training worker, then of the pipeline with every process of its cluster."""
    path, whole_run, run = pipeline_file(tmp_path), whole[0].parent / "run", tmp_path / "run"
    for name in ("models", *(f"run/{stage}" for stage in STAGES[: STAGES.index("pretrain")])):
        shutil.copytree(whole_run.parent / name, tmp_path / name)
    process = start(path, "until=pretrain")
    wait_for(process, lambda: len(losses(run)) >= FIRST_KILL)
    killed = train_workers(process)
    assert killed
    kill(killed)
    wait_for(process, lambda: any(worker not in killed for worker in train_workers(process)))
    wait_for(process, lambda: len(losses(run)) >= SECOND_KILL and newest_checkpoint(run) > FIRST_KILL)
    kill(family(process))
    process.wait()
    assert len(losses(run)) < NUM_STEPS
    assert Manifest.read(run / "pretrain").status == "running"  # type: ignore[union-attr]
    second_start = time.time()
    finish(start(path, "until=distill"))
    rows = read_metrics(run / "pretrain" / "metrics.jsonl")
    assert rows[FIRST_KILL]["time"] < second_start < rows[-1]["time"], "the second attempt goes on, it does not begin again"
    assert losses(run) == losses(whole_run)
    assert (run / STUDENT).read_bytes() == (whole_run / STUDENT).read_bytes()
