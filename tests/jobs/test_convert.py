"""The conversion job with compensated rounding, on a random model and packed text."""

import shutil
from pathlib import Path

import pytest
import torch

from jobs.convert import main
from tests.jobs.test_diffuse import SOURCE
from tests.wfray.data.conftest import write_corpus
from wfray.config.convert import ConvertConfig, Subln
from wfray.quant.bitlinear import bit_linears
from wfray.runs import Manifest
from wfray.runs.metrics import read_metrics
from wfray.student import calibration_rows, compensate, convert, load_original, load_student, materialize

TOKENS = 200
PIECE_TOKENS = 5


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with `model/` and `pack/corpus/`, in a home of its own."""
    monkeypatch.setenv("WFRAY_HOME", str(tmp_path))
    materialize(SOURCE, tmp_path).rename(tmp_path / "model")
    write_corpus(tmp_path / "pack" / "corpus", {"large": 60}, {"large": 1.0})
    return tmp_path


def config(run: Path, **values: object) -> ConvertConfig:
    tree = {"run": str(run), "model": {"kind": "directory", "path": str(run / "model")}, "subln": {"placement": "none"}}
    rounding = {"kind": "compensated", "tokens": TOKENS, "piece_tokens": PIECE_TOKENS}
    return ConvertConfig.parse({**tree, "rounding": rounding, **values}, "test")


def test_the_student_is_the_one_that_the_calibration_rows_give(run: Path) -> None:
    main(config(run))
    student = load_student(run / "convert" / "student")
    wanted = convert(load_original(run / "model", torch.bfloat16), Subln(placement="none"))
    settings = config(run).rounding
    rows = list(calibration_rows(run / "pack" / "corpus", TOKENS, PIECE_TOKENS))
    drifts = compensate(wanted, rows, settings, lambda *progress: None)  # type: ignore[arg-type]
    for ours, theirs in zip(bit_linears(student), bit_linears(wanted), strict=True):
        assert torch.equal(ours.weight, theirs.weight) and ours.partial_lambda is None
    manifest = Manifest.read(run / "convert")
    assert manifest is not None and manifest.figures["drifts"] == drifts
    rows = [row for row in read_metrics(run / "convert" / "metrics.jsonl") if "drift" in row]
    assert [(row["layer"], row["drift"]) for row in rows] == list(enumerate(drifts))
    assert rows[-1]["message"] == "layer 2 of 2 rounded"


def test_text_is_needed(run: Path) -> None:
    with pytest.raises(ValueError, match="rounding compensated needs a calibration corpus; give `corpus`, or set rounding.kind=nearest"):
        config(run, corpus=None)
    shutil.rmtree(run / "pack")
    with pytest.raises(ValueError, match="pack"):
        main(config(run))
