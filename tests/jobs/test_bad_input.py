"""What a user gets wrong ends with exit code 2, one message that names the mend, and nothing that looks whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.local import LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TOKENIZER = yaml.safe_load((ROOT / "configs/models/smollm2_135m.yaml").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def job(shared_cluster: LocalCluster, home: Path):  # type: ignore[no-untyped-def]
    """Runs a job as `ray job submit` would, in this checkout, on the shared cluster."""

    def run(name: str, *arguments: str, run_directory: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jobs.{name}", "--config", f"configs/{name}/tiny.yaml", f"run={run_directory or home / 'run'}"]
        environment = {**os.environ, "RAY_ADDRESS": shared_cluster.address, "WFRAY_HOME": str(home)}
        return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def packed(job, home: Path) -> Path:  # type: ignore[no-untyped-def]
    """A run with a packed corpus and a converted student."""
    for name in ("pack", "convert"):
        result = job(name)
        assert result.returncode == 0, result.stderr
    return home / "run"


def refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, (result.returncode, result.stderr[-2000:])
    message = result.stderr[result.stderr.rindex("error: ") :]
    assert "Traceback" not in message
    for part in parts:
        assert part in message, message


def status(directory: Path) -> str:
    return json.loads((directory / "manifest.json").read_text())["status"]


def test_unknown_key_and_missing_file(job) -> None:  # type: ignore[no-untyped-def]
    refused(job("pack", "sequence_lenght=64"), "sequence_lenght: unknown key; did you mean 'sequence_length'?")
    refused(job("pack", "--config", "configs/pack/none.yaml"), "'configs/pack/none.yaml' does not exist; there are:", "tiny.yaml")


def test_an_empty_corpus_names_the_source(job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "texts").mkdir()
    source = json.dumps([{"name": "mine", "kind": "text_files", "path": str(tmp_path / "texts"), "licence": "own", "weight": 1}])
    refused(job("pack", f"sources={source}", run_directory=tmp_path / "run"), "mine")
    assert not (tmp_path / "run" / "pack" / "corpus" / "corpus.json").exists()


def test_a_model_of_an_unknown_family(job, packed: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    model = json.dumps({"kind": "directory", "path": str(tmp_path)})
    refused(job("convert", f"model={model}", "stage=unknown"), "'gpt2' cannot become students; known families: gemma3_text, llama")
    assert not (packed / "unknown" / "student").exists()


def test_a_student_of_another_tokenizer(job, packed: Path) -> None:  # type: ignore[no-untyped-def]
    path = packed / "convert" / "student" / "tokenizer.json"
    original = path.read_text()
    tokenizer = json.loads(original)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    path.write_text(json.dumps(tokenizer))
    try:
        refused(
            job("pretrain", f"student={packed / 'convert'}", "stage=other"),
            "was packed with another tokenizer",
            "pack it with the model's tokenizer",
        )
    finally:
        path.write_text(original)
    assert not (packed / "other" / "student").exists()


def test_a_teacher_that_is_not_deployed(job, packed: Path) -> None:  # type: ignore[no-untyped-def]
    result = job("align", "stage=alone", "teacher.timeout_seconds=3")
    refused(result, "application 'teacher' is not deployed on this cluster after 3 s", "python -m jobs.teacher")
    assert status(packed / "alone") == "failed"


def test_a_stage_whose_parent_is_missing(job, packed: Path) -> None:  # type: ignore[no-untyped-def]
    refused(job("pretrain", "student=nothing"), "student: 'nothing' is neither a stage in")


def test_a_truncated_checkpoint(job, packed: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = (f"student={packed / 'convert'}", "stage=cut", "train.optimizer.learning_rate=1.0e+30", "train.max_failures=0")
    refused(job("pretrain", *arguments), "must be finite")
    newest = max((packed / "cut" / "checkpoints").glob("step-*"))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    refused(job("pretrain", *arguments), f"checkpoint {str(newest)!r}", "delete it to start this stage again")
    assert not (packed / "cut" / "student").exists()


def test_a_full_disk_leaves_nothing_that_looks_whole(job, packed: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        result = job("convert", f"corpus={packed / 'pack'}", run_directory=disk / "run")
        refused(result, "No space left on device", "check free space")
        assert not (disk / "run" / "convert" / "student").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_run_directory_that_cannot_be_written(job, packed: Path) -> None:  # type: ignore[no-untyped-def]
    refused(job("pack", run_directory=Path("/proc/run")), "/proc", "permissions")
