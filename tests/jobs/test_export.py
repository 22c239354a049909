"""The export's job on a tiny student, its exporter in this process: several formats, their figures, and nothing kept that misses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs.export
import wfray.export.gguf_bitnet as gguf_bitnet
from actors.exporter import Exporter
from tests.wfray.data.conftest import write_corpus
from tests.wfray.export.conftest import build, small, tokenizer
from wfray.config.export import ExportConfig
from wfray.report.page import write_report
from wfray.runs import Manifest
from wfray.runs.stage import OWN

__all__ = ["build", "small", "tokenizer"]

FORMATS = [
    {"kind": "gguf", "linear_type": "Q4_0", "embedding_type": "Q8_0"},
    {"kind": "i2_s", "layout": "x86"},
    {"kind": "huggingface", "form": "packed"},
]


@pytest.fixture
def configure(small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExportConfig]:
    """A function that makes a configuration of an export of the smallest student, whose exporter needs no cluster."""
    monkeypatch.setattr(jobs.export, "connect", lambda: None)
    monkeypatch.setattr(jobs.export, "Remote", lambda name, config, **resources: Exporter(config))
    write_corpus(tmp_path / "packed" / "corpus", {"large": 40}, {"large": 1.0})

    def make(formats: list[dict[str, str]]) -> ExportConfig:
        tree = {"run": str(tmp_path / "run"), "student": str(small[1].parent), "corpus": str(tmp_path / "packed")}
        speed = {"prompt_tokens": 8, "decode_tokens": 2, "repeats": 1}
        options = {"original": str(small[0].parent), "formats": formats, "threads": 1, "parity": {"sequences": 4}, "speed": speed}
        return ExportConfig.parse({**tree, **options}, "test")

    return make


def test_every_format_is_written_and_proved_once(configure, tmp_path, capsys):
    config = configure(FORMATS)
    jobs.export.main(config)
    manifest = Manifest.read(tmp_path / "run" / "export")
    assert manifest is not None and manifest.status == "complete"
    assert [output.path for output in manifest.outputs] == ["model.gguf", "model-i2_s.gguf", "huggingface", "original.gguf"]
    model, others = manifest.figures["model"], manifest.figures["others"]
    assert (
        model["linear_type"] == "Q4_0"
        and model["speed"]["decode"] > 0
        and [other["path"] for other in others]
        == [
            "model-i2_s.gguf",
            "huggingface",
        ]
    )
    assert all(file["parity"]["mean_kl"] < 1e-4 and file["bytes_per_linear_weight"] > 0 for file in [model, *others])
    output = capsys.readouterr().out
    assert output.count("parity over") == 3 and "original.gguf" in output
    report = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert all(stored in report for stored in ("ternary, Q4_0", "ternary, I2_S, x86", "ternary, Hugging Face, packed"))
    jobs.export.main(config)
    assert "already done" in capsys.readouterr().out


def test_what_misses_its_bounds_is_not_kept(configure, tmp_path, monkeypatch):
    quantize = gguf_bitnet.quantize_weight
    monkeypatch.setattr(gguf_bitnet, "quantize_weight", lambda weight: (quantize(weight)[0], 1 / quantize(weight)[1]))
    with pytest.raises(ValueError, match="model.gguf does not compute what was trained"):
        jobs.export.main(configure(FORMATS))
    manifest = Manifest.read(tmp_path / "run" / "export")
    assert manifest is not None and manifest.status == "failed" and "does not compute" in str(manifest.error)
    assert {path.name for path in (tmp_path / "run" / "export").iterdir()} == OWN | {"metrics.jsonl"}


@pytest.mark.parametrize("formats", [[FORMATS[0], FORMATS[0]], [{"kind": "gguf", "path": "original.gguf"}]])
def test_two_outputs_of_one_name_are_refused(configure, formats):
    with pytest.raises(ValueError, match="more than once; give each a `path`"):
        configure(formats)


def test_the_first_format_is_the_model(configure, tmp_path):
    jobs.export.main(configure([FORMATS[2]]))
    figures = json.loads((tmp_path / "run" / "export" / "manifest.json").read_text())["figures"]
    assert figures["model"]["form"] == "packed" and figures["others"] == [] and "speed" not in figures["model"]
    assert "ternary, Hugging Face, packed" in write_report(tmp_path / "run").read_text(encoding="utf-8")
