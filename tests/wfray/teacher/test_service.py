"""The service: the cache in front of the engine, promises tried once, refusals; and its HTTP application."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from tests.wfray.student.conftest import tiny_model
from wfray.config.teacher import SignalCache
from wfray.teacher import SignalRequest, TeacherService, TransformersEngine
from wfray.teacher.cache import SignalStore
from wfray.teacher.http import build_app, token_hash
from wfray.teacher.meter import Meter
from wfray.teacher.rows import Arrays, take_rows
from wfray.teacher.signals import as_tensors

REQUEST = SignalRequest(wires=["hidden", "layers", "topk"], num_ids=6)
TOKEN = "0123456789abcdef"
Batch = dict[str, np.ndarray]


def service_of(engine: TransformersEngine, cache: Path | None = None) -> TeacherService:
    meter = Meter()
    store = SignalStore(SignalCache(path=str(cache), max_gb=1.0), engine.fingerprint.digest, meter) if cache else None
    return TeacherService(engine, meter, store=store)


def ask(service: TeacherService, batch: Batch, request: SignalRequest = REQUEST) -> Arrays:
    return asyncio.run(service.answer("test", batch, request))


def equal(first: Arrays, second: Arrays) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_second_epoch_computes_nothing(engine: TransformersEngine, batch: Batch, tmp_path: Path) -> None:
    first, second = service_of(engine, tmp_path), service_of(engine, tmp_path)
    answer = ask(first, batch)
    assert equal(answer, engine.signals(batch, REQUEST)) and first.status()["passes"] == 1
    assert equal(ask(second, batch), answer)
    assert equal(ask(second, take_rows(batch, [1, 0])), take_rows(answer, [1, 0]))
    status = second.status()
    assert (status["passes"], status["cache_hits"], status["cache_misses"], status["requests"]) == (0, 4, 0, 2)


def test_only_rows_that_are_not_kept_are_computed(engine: TransformersEngine, batch: Batch, tmp_path: Path) -> None:
    service = service_of(engine, tmp_path)
    alone = ask(service, take_rows(batch, [1]))
    both = ask(service, batch)
    assert equal(take_rows(both, [1]), alone)
    assert service.status()["computed_tokens"] == 24 and service.status()["tokens"] == 36


def test_a_damaged_entry_is_computed_again(engine: TransformersEngine, batch: Batch, tmp_path: Path) -> None:
    first, second = service_of(engine, tmp_path), service_of(engine, tmp_path)
    answer = ask(first, batch)
    for path in tmp_path.rglob("*.signal"):
        path.write_bytes(path.read_bytes()[:-1])
    assert equal(ask(second, batch), answer)
    status = second.status()
    assert status["passes"] == 1 and status["cache_damaged"] == 2, "the first wire of each row is looked at"
    assert equal(ask(service_of(engine, tmp_path), batch), answer)


def test_what_is_not_finite_is_refused_and_not_kept(tokenizer: PreTrainedTokenizerFast, batch: Batch, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    service = service_of(TransformersEngine(tmp_path / "model", "bfloat16"), tmp_path / "cache")
    hidden = SignalRequest(wires=["hidden"])
    batch["input_ids"][batch["input_ids"] == 77] = 78
    assert len(ask(service, batch, hidden)) == 1
    batch["input_ids"][1, 4] = 77
    with pytest.raises(ValueError, match="teacher's hidden holds values that are not finite"):
        ask(service, batch, hidden)
    assert len(list((tmp_path / "cache").rglob("*.signal"))) == 2
    with pytest.raises(ValueError, match="not finite"):
        service.probe(["logits"])


def test_promised_wires_are_tried(engine: TransformersEngine) -> None:
    service = service_of(engine)
    service.probe(["hidden", "layers", "qkv", "topk", "sampled", "logits"])
    service.engine = TransformersEngineOfServers(engine)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="engine vllm cannot give layers, qkv: deploy the teacher with engine=transformers"):
        service.probe(["hidden", "layers", "qkv"])


class TransformersEngineOfServers:
    """The same under the name of an engine that gives less."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.fingerprint = engine.fingerprint.model_copy(update={"engine": "vllm"})


def test_rows_beyond_the_context_are_refused(engine: TransformersEngine) -> None:
    long = {name: np.ones((1, 65), np.int32) for name in ("input_ids", "position_ids", "segment_ids")}
    with pytest.raises(ValueError, match="rows of 65 tokens exceed the teacher's context of 64: pack shorter rows"):
        ask(service_of(engine), long)


@pytest.fixture
def http(engine: TransformersEngine) -> TestClient:
    service = service_of(engine)

    async def answer(batch: Arrays, request: SignalRequest) -> tuple[str, Arrays]:
        return engine.fingerprint.digest, await service.answer("http", batch, request)

    async def fingerprint() -> dict:
        return engine.fingerprint.model_dump()

    app = build_app(answer, fingerprint, token_hash(TOKEN), max_body_bytes=5000)
    return TestClient(app, headers={"authorization": f"Bearer {TOKEN}"})


def test_http_answers_are_the_engines(http: TestClient, engine: TransformersEngine, batch: Batch) -> None:
    body = {"input_ids": batch["input_ids"].tolist(), "segment_ids": batch["segment_ids"].tolist()}
    response = http.post("/signals", json={**body, "wires": ["hidden", "topk", "sampled"], "num_ids": 6, "seed": 2})
    assert response.status_code == 200 and response.headers["x-teacher"] == engine.fingerprint.digest
    found = load(response.content)
    wanted = as_tensors(engine.signals(batch, SignalRequest(wires=["hidden", "topk", "sampled"], num_ids=6, seed=2)))
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["hidden"].dtype == torch.bfloat16
    assert http.get("/fingerprint").json()["vocab_size"] == 100


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer 0123456789abcdeX", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_http_without_the_token_is_refused(http: TestClient, header: str) -> None:
    for response in (http.get("/fingerprint", headers={"authorization": header}), http.post("/signals", headers={"authorization": header})):
        assert response.status_code == 401 and "Bearer <token>" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("nonsense", 400, "body: Input should be an object"),
        ({"input_ids": [[1, 2], [3]], "wires": ["hidden"]}, 400, "input_ids: rows must be of one length"),
        ({"input_ids": [[1, 2]], "wires": ["pictures"]}, 400, "wires.0"),
        ({"input_ids": [[1, 2]], "wires": ["topk"]}, 400, "need num_ids"),
        ({"input_ids": [[1] * 65], "wires": ["hidden"]}, 400, "exceed the teacher's context of 64"),
        ({"input_ids": [[1, 2]], "segment_ids": [[1]], "wires": ["hidden"]}, 400, "must have one shape"),
        ({"input_ids": [[1, 100]], "wires": ["hidden"]}, 400, "token 100"),
        ({"input_ids": [[1, 2]] * 2000, "wires": ["hidden"]}, 413, "send fewer rows"),
    ],
)
def test_http_mistakes_are_named(http: TestClient, body: object, status: int, message: str) -> None:
    response = http.post("/signals", json=body)
    assert response.status_code == status and message in response.json()["detail"], response.text
