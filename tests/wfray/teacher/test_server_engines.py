"""vllm and sglang against transformers on the same packed rows of real text, each in the environment that `make engines` sets up."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from wfray.config.teacher import TeacherConfig
from wfray.data.batch import derive_positions
from wfray.data.tokenizer import load_directory_tokenizer
from wfray.student import materialize
from wfray.teacher import EngineGone, SignalRequest, TransformersEngine, decode_signals, make_engine, make_service
from wfray.teacher.server_engine import ServerEngine, documents_of

ROOT = Path(__file__).parents[3]
ENGINES = Path(os.environ.get("WFRAY_ENGINES", "~/.cache/wfray/engines")).expanduser()
REQUEST = SignalRequest(wires=["hidden", "topk", "sampled", "logits"], num_ids=20)
LENGTH = 96


def test_documents_are_told_apart() -> None:
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    assert documents_of(segments) == [(0, 0, 2), (0, 2, 5), (1, 0, 6)]


def test_an_environment_without_the_engine_is_named(checkpoint: Path) -> None:
    config = TeacherConfig.parse(tree("vllm", python="/nowhere/bin/python"), "test")
    with pytest.raises(ValueError, match="python '/nowhere/bin/python' has no vllm"):
        make_engine(config, checkpoint)


def tree(name: str, **changes: object) -> dict:
    model = {"kind": "directory", "path": "unused"}
    return {"model": model, "engine": name, "python": str(ENGINES / name / "bin" / "python"), "threads": 1, **changes}


@pytest.fixture(scope="module")
def real_model() -> Path:
    """SmolLM2-135M."""
    config = TeacherConfig.load(ROOT / "configs" / "teacher" / "smollm2_135m.yaml")
    return materialize(config.model, ROOT / ".cache" / "models")


@pytest.fixture(scope="module")
def rows(real_model: Path) -> dict[str, np.ndarray]:
    """Three packed rows of this project's own prose: five documents, padding at the end."""
    tokens = load_directory_tokenizer(real_model).encode((ROOT / "docs" / "training.md").read_text())
    ids = np.array(tokens[: 3 * LENGTH], dtype=np.int32).reshape(3, LENGTH)
    segments = np.repeat([[1], [1], [1]], LENGTH, axis=1).astype(np.int32)
    segments[1, 40:], segments[2, 20:], segments[2, 80:] = 2, 2, 0
    ids[segments == 0] = 0
    return {"input_ids": ids, "position_ids": derive_positions(segments), "segment_ids": segments}


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def engine(request: pytest.FixtureRequest, real_model: Path) -> Iterator[ServerEngine]:
    config = TeacherConfig.parse(tree(request.param, engine_arguments=ARGUMENTS[request.param]), "test")
    service = make_service(config, real_model)
    yield service.engine  # type: ignore[misc]
    service.close()


ARGUMENTS = {"vllm": ["--max-model-len", "1024"], "sglang": ["--context-length", "1024", "--max-total-tokens", "8192"]}


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_answers_as_transformers_does(engine: ServerEngine, real_model: Path, rows: dict[str, np.ndarray]) -> None:
    reference = TransformersEngine(real_model, "bfloat16")
    assert engine.fingerprint.model_sha256 == reference.fingerprint.model_sha256 and engine.fingerprint != reference.fingerprint
    assert np.array_equal(engine.head(), reference.head())
    arrays = engine.signals(rows, REQUEST)
    ours, wanted = (decode_signals(found) for found in (arrays, reference.signals(rows, REQUEST)))
    real = torch.from_numpy(rows["segment_ids"]) > 0
    difference = (ours["hidden"] - wanted["hidden"]).float()[real].norm() / wanted["hidden"].float()[real].norm()
    # Two ways of rounding to bfloat16 in 30 layers: 1 to 2% are usual; another position or document would be 100%.
    assert difference < 0.03
    log_p, log_q = (signals["logits"].float()[real].log_softmax(-1) for signals in (wanted, ours))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert kl.mean() < 0.005, kl.mean()
    mine, theirs = (signals["topk"].ids[real].tolist() for signals in (ours, wanted))
    overlap = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(mine, theirs, strict=True)])
    assert overlap > 0.9, overlap
    again = engine.signals(rows, SignalRequest(wires=["hidden"]))["hidden"]
    assert again.shape == arrays["hidden"].shape


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_that_dies_is_noticed_and_one_that_is_closed_leaves_no_process(engine: ServerEngine, rows: dict[str, np.ndarray]) -> None:
    engine.check_health()
    family = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
    family[0].kill()
    engine.process.wait()
    with pytest.raises(RuntimeError, match=f"{engine.name} ended with code -9"):
        engine.check_health()
    with pytest.raises(EngineGone, match=f"{engine.name} is gone"):
        engine.signals(rows, SignalRequest(wires=["hidden"]))
    for process in family[1:]:
        if process.is_running():
            process.terminate()
    deadline = time.monotonic() + 60
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline
        time.sleep(0.2)
