"""The tiny pipeline, every stage for real on a local Ray cluster of its own: done, skipped, killed with -9, resumed."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from wfray.runs import Manifest, read_metrics, stage_manifests

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
STAGES = ["pack", "convert", "align", "pretrain", "distill", "export", "evaluate", "serve"]
STUDENT = Path("distill/student/model.safetensors")
NUM_STEPS = 64
FIRST_KILL, SECOND_KILL = 12, 30
PRETRAIN = {"train.tokens": 256 * NUM_STEPS, "train.checkpoint_every_tokens": 2048}
"""A checkpoint every 8 steps: long enough to be killed in the middle."""


def pipeline_file(directory: Path) -> Path:
    """The tiny pipeline in a run directory of its own, with a longer pre-training."""
    tree = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    tree["run"] = str(directory / "run")
    for call in tree["stages"]:
        if call["job"] == "pretrain":
            call["set"] = PRETRAIN
    path = directory / "pipeline.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """The pipeline as a user starts it."""
    command = [sys.executable, "-m", "jobs.pipeline", "--config", str(path), *arguments]
    # A shell ignores SIGINT for what it starts in the background, these tests perhaps.
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; its output."""
    try:
        output, _ = process.communicate(timeout=1200)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    return output


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run / "pretrain" / "metrics.jsonl")}


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    """Wait until something holds while the pipeline runs."""
    while not what():
        if process.poll() is not None:
            pytest.fail(f"the pipeline ended too early:\n{process.communicate()[0]}")
        time.sleep(0.02)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The pipeline and every process below it."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    """`kill -9` every one that still lives."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live on two minutes later; the dead that nobody has waited for do not count."""
    _, alive = psutil.wait_procs([process for process in processes if process.is_running()], timeout=120)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


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


def test_killed_workers_and_drivers_resume_to_the_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    """`kill -9` of the training worker, then of the pipeline with every process of its cluster."""
    path, whole_run, run = pipeline_file(tmp_path), whole[0].parent / "run", tmp_path / "run"
    for name in ("models", *(f"run/{stage}" for stage in STAGES[: STAGES.index("pretrain")])):
        shutil.copytree(whole_run.parent / name, tmp_path / name)
    process = start(path, "until=pretrain")
    wait_for(process, lambda: len(losses(run)) >= FIRST_KILL)
    workers = [member for member in family(process) if "TrainWorker" in " ".join(member.cmdline())]
    assert workers
    kill(workers)
    wait_for(process, lambda: len(losses(run)) < FIRST_KILL)
    wait_for(process, lambda: len(losses(run)) >= SECOND_KILL)
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


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """A signal ends the pipeline in order: its message, and no process left."""
    processes = family(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and output.endswith("error: interrupted; the same command goes on from here\n"), output
    assert not still_alive(processes)


def test_ctrl_c_and_sigterm_leave_no_process_and_a_later_run_goes_on(tmp_path: Path) -> None:
    path = pipeline_file(tmp_path)
    manifest = tmp_path / "run" / "pack" / "manifest.json"
    starting = start(path, "until=pack")
    wait_for(starting, lambda: len(family(starting)) > 3)
    interrupt(starting, signal.SIGTERM)
    packing = start(path, "until=pack")
    wait_for(packing, manifest.exists)
    interrupt(packing, signal.SIGINT)
    assert json.loads(manifest.read_text())["status"] != "complete"
    assert "pack: done" in finish(start(path, "until=pack"))
