"""The teacher application on a real Ray cluster: students that train on it, while its replicas are killed, replaced and deleted."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import requests
import torch
from ray import serve
from ray.experimental import get_object_locations
from safetensors.torch import load

from actors.student_worker import run_worker
from actors.teacher import deploy, status_of, take_down
from actors.teacher_client import TeacherClient
from actors.teacher_record import taught_by_another
from cluster.local import LocalCluster
from jobs.teacher import main
from tests.wfray.data.conftest import SEQUENCE_LENGTH, smollm2, tokenizer, write_corpus
from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.config.teacher import TeacherConfig
from wfray.config.train import TeacherUse, TrainConfig
from wfray.data.shards import write_index
from wfray.data.tokenizer import tokenizer_sha256
from wfray.runs import read_metrics, write_json
from wfray.student import convert, save_student
from wfray.teacher import SignalRequest, TransformersEngine

__all__ = ["smollm2", "tokenizer"]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
NAME = "lesson"
BAD_TOKEN = 99
STEP = 8 * SEQUENCE_LENGTH
NUM_STEPS = 40
TOKEN = "0123456789abcdef0123456789abcdef"
HIDDEN = SignalRequest(wires=["hidden"])


def teacher_config(directory: Path, **changes: Any) -> TeacherConfig:
    tree = {
        "application": NAME,
        "model": {"kind": "directory", "path": "unused"},
        "wires": ["hidden", "layers", "qkv", "topk", "sampled", "logits"],
        "num_cpus": 0.1,
        "threads": 1,
        "http": {"token_file": str(directory / "token")},
        **changes,
    }
    return TeacherConfig.parse(tree, "test")


@dataclass
class Place:
    """What all tests work on."""

    directory: Path
    cluster: LocalCluster

    @property
    def model(self) -> Path:
        return self.directory / "model"

    def train(self, stage: str, objectives: list[dict], run: str, num_steps: int = NUM_STEPS, **teacher: Any) -> dict[int, dict[str, Any]]:
        """Train a student of this process to its end, or go on with it; the rows of its metrics."""
        tree = {
            "run": run,
            "stage": stage,
            "student": "unused",
            "teacher": {"application": NAME, "timeout_seconds": 60, **teacher},
            "objectives": objectives,
            "train": {
                "tokens": num_steps * STEP,
                "batch_tokens": STEP,
                "micro_rows": 4,
                "checkpoint_every_tokens": 10 * STEP,
                "optimizer": {"learning_rate": 1e-2},
                "threads": 1,
            },
        }
        run_worker(TrainConfig.parse(tree, "test"), self.stage(stage, run), self.directory / "student", self.directory / "corpus")
        return self.rows(stage, run)

    def stage(self, stage: str, run: str) -> Path:
        return self.directory / run / stage

    def rows(self, stage: str, run: str) -> dict[int, dict[str, Any]]:
        return {row["step"]: row for row in read_metrics(self.stage(stage, run) / "metrics.jsonl")}

    def losses(self, stage: str, run: str) -> dict[int, float]:
        return {step: row["loss"] for step, row in self.rows(stage, run).items()}


def save_teacher(directory: Path, tokenizer: Any, seed: int) -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 512
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.get_input_embeddings().weight[BAD_TOKEN] = torch.nan
        model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(model.get_input_embeddings().weight))
    model.config.tie_word_embeddings = False
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module")
def place(connected: LocalCluster, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A student, a corpus, two teachers, one of them deployed with a cache and HTTP."""
    directory = tmp_path_factory.mktemp("lesson")
    save_teacher(directory / "model", tokenizer, seed=1)
    save_teacher(directory / "other", tokenizer, seed=2)
    save_student(convert(tiny_model("llama"), Subln(init="ones")), directory / "student", tokenizer_from=directory / "model")
    corpus = write_corpus(directory / "corpus", {"large": 40}, {"large": 1.0}, {"large": (1, BAD_TOKEN)})
    write_index(corpus.directory, corpus.index.model_copy(update={"tokenizer_sha256": tokenizer_sha256(tokenizer)}))
    (directory / "token").write_text(TOKEN)
    deploy(teacher_config(directory), directory / "model")
    yield Place(directory, connected)


def batch(num_rows: int = 4, length: int = 32, token: int | None = None) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(num_rows).integers(1, BAD_TOKEN, (num_rows, length), dtype=np.int32)
    ids[-1, -1] = ids[-1, -1] if token is None else token
    return {"input_ids": ids, "position_ids": np.tile(np.arange(length, dtype=np.int32), (num_rows, 1)), "segment_ids": np.ones_like(ids)}


def client(request: SignalRequest = HIDDEN, name: str = "client", **use: Any) -> TeacherClient:
    return TeacherClient(TeacherUse(application=NAME, **use), request, name)


DISTILL = [
    {"kind": "cross_entropy"},
    {"kind": "logits_kl", "temperature": 2.0},
    {"kind": "attention_relations", "layer": 1, "split_heads": 4},
]
ALIGN = [{"kind": "cross_entropy"}, {"kind": "alignment"}]


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[int, float]:
    """The losses of a student that nothing happens to."""
    place.train("distill", DISTILL, "undisturbed")
    return place.losses("distill", "undisturbed")


def test_one_request_has_all_wires_of_one_pass_to_the_bit(place: Place) -> None:
    request = SignalRequest(wires=["hidden", "layers", "qkv", "topk", "sampled", "logits"], qkv_layer=1, num_ids=6)
    passes = status_of(NAME)[0]["passes"]
    answer = client(request).request(batch()).call.wait()
    wanted = TransformersEngine(place.model, "bfloat16").signals(batch(), request)
    assert set(answer["arrays"]) == set(wanted)
    assert all(np.array_equal(answer["arrays"][name], wanted[name]) for name in wanted)
    assert status_of(NAME)[0]["passes"] == passes + 1
    assert torch.equal(client().head().float(), torch.nan_to_num(client().head().float()))


def test_status_and_metrics_say_who_and_how_much(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    asking = client(name="counted")
    for _ in range(3):
        asking.request(batch()).result()
    capsys.readouterr()
    main(teacher_config(place.directory), status=True)
    replica = json.loads(capsys.readouterr().out)[0]
    assert replica["fingerprint"]["vocab_size"] == 100 and replica["digest"] == asking.fingerprint.digest
    assert replica["tokens_by_client"]["counted"] == 3 * 4 * 32 and replica["tokens_per_second"] > 0 and replica["queue"] == 0
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {f"wfray_teacher_{name}" for name in ("tokens_total", "requests_total", "queue", "tokens_per_second", "cache_hits_total")}
    wait_for(lambda: figure(port, "wfray_teacher_tokens_total", asking.fingerprint.digest) >= replica["tokens"])
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert {name for name in wanted if name not in text} <= {"wfray_teacher_cache_hits_total"}, "no cache, so no hits"


def figure(port: int, name: str, digest: str) -> float:
    """A figure of this teacher on Ray's metrics endpoint."""
    lines = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if name in line and digest in line and f'application="{NAME}"' in line]
    return sum(values)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_stage_is_known_by_the_teacher_that_taught_it(place: Place, tmp_path: Path) -> None:
    """Its source alone, a copy in another directory, makes no other teacher."""
    teacher = status_of(NAME)[0]["fingerprint"]
    assert teacher["source_sha256"] == teacher_config(place.directory).source_sha256
    changes = {
        "itself": {},
        "copied": {"source_sha256": "0"},
        "other weights": {"model_sha256": "0"},
        "other figures": {"config_sha256": "0"},
    }
    found = {}
    for name, change in changes.items():
        write_json(tmp_path / "teacher.json", teacher | change)
        found[name] = taught_by_another(NAME, tmp_path)
    assert found == {"itself": False, "copied": False, "other weights": True, "other figures": True}
    assert not taught_by_another("not-deployed", tmp_path) and not taught_by_another(NAME, tmp_path / "not taught")


def test_a_request_longer_than_the_model_is_refused_before_it_is_sent(place: Place) -> None:
    asking, requests_before = client(), status_of(NAME)[0]["requests"]
    with pytest.raises(ValueError, match="rows of 513 tokens exceed the teacher's context of 512"):
        asking.request(batch(1, 513))
    assert status_of(NAME)[0]["requests"] == requests_before


def test_values_that_are_not_finite_reach_no_student(place: Place) -> None:
    asking = client()
    pending = asking.request(batch(token=BAD_TOKEN))
    with pytest.raises(ValueError, match="teacher's hidden holds values that are not finite: check the teacher's dtype") as raised:
        pending.result()
    assert "Traceback" not in str(raised.value)
    assert asking.request(batch()).result()["hidden"].isfinite().all()


def test_who_stops_reading_is_held_back(place: Place) -> None:
    asking = client(SignalRequest(wires=["logits"]), in_flight=3)
    pending = [asking.request(batch(16, 256)) for _ in range(3)]
    with pytest.raises(ValueError, match="3 answers of the teacher are unread: read one first"):
        for _ in range(1000):
            asking.request(batch(16, 256))
    references = [answer.call.response._to_object_ref_sync() for answer in pending]
    ray.wait(references, num_returns=3, timeout=60)
    sizes = [location["object_size"] for location in get_object_locations(references).values()]
    assert len(sizes) == 3 and sum(sizes) <= 3.1 * (16 * 256 * 100 * 2), "only what was asked for is in the object store"
    assert all(answer.result()["logits"].shape == (16, 256, 100) for answer in pending)
    asking.request(batch()).result()


def test_http_is_for_those_with_the_token(place: Place) -> None:
    url = f"http://127.0.0.1:{place.cluster.http_port}/{NAME}"
    body = {"input_ids": batch(2)["input_ids"].tolist(), "wires": ["hidden"]}
    assert requests.post(f"{url}/signals", json=body, timeout=30).status_code == 401
    answer = requests.post(f"{url}/signals", json=body, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
    wanted = client().request(batch(2)).result()["hidden"]
    assert torch.equal(load(answer.content)["hidden"], wanted)
    long = {**body, "input_ids": [[1] * 513]}
    refused = requests.post(f"{url}/signals", json=long, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
    assert refused.status_code == 400 and "exceed the teacher's context" in refused.json()["detail"]


@dataclass
class Reader(threading.Thread):
    """A student that only reads, as fast as it can, until it is told to stop."""

    asking: TeacherClient
    batch: dict[str, np.ndarray]
    digests: list[str] = field(default_factory=list)
    error: Exception | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        try:
            ahead = [self.asking.request(self.batch) for _ in range(self.asking.use.in_flight)]
            while not self.stopped.is_set():
                answer = ahead.pop(0).call.wait()
                self.asking.num_unread -= 1
                self.digests.append(answer["teacher"])
                ahead.append(self.asking.request(self.batch))
            for pending in ahead:
                pending.call.wait()
        except Exception as error:
            self.error = error


def test_two_students_have_equal_shares_however_much_they_ask_for(place: Place) -> None:
    request = SignalRequest(wires=["logits", "topk", "sampled"], num_ids=20)
    greedy = Reader(client(request, "greedy", in_flight=8), batch(16, 128))
    modest = Reader(client(request, "modest", in_flight=4), batch(24, 128))
    for reader in (greedy, modest):
        reader.start()
    wait_for(lambda: len(greedy.digests) > 4 and len(modest.digests) > 4)
    before = status_of(NAME)[0]["tokens_by_client"]
    wait_for(lambda: len(modest.digests) > 60)
    after = status_of(NAME)[0]["tokens_by_client"]
    for reader in (greedy, modest):
        reader.stopped.set()
        reader.join()
    served = {name: after[name] - before[name] for name in ("greedy", "modest")}
    assert greedy.error is modest.error is None
    assert abs(served["modest"] / sum(served.values()) - 0.5) < 0.05, served


@pytest.mark.slow
def test_students_of_two_stages_at_once_both_finish(place: Place, undisturbed: dict[int, float]) -> None:
    with ThreadPoolExecutor(1) as pool:
        stage = pool.submit(place.train, "align", ALIGN, "both", num_steps=3 * NUM_STEPS)
        # Models are built one at a time in a process: accelerate's empty weights are a patch of torch for all of its threads.
        wait_for(lambda: bool(place.losses("align", "both")) or stage.done())
        distilled = place.train("distill", DISTILL, "both")
        aligned = stage.result()
    assert distilled[1]["time"] < aligned[3 * NUM_STEPS]["time"], "both were taught at once"
    assert place.losses("distill", "both") == undisturbed
    losses = [aligned[step]["loss"] for step in sorted(aligned)]
    assert sum(losses[-NUM_STEPS:]) < sum(losses[:NUM_STEPS])


@pytest.mark.slow
def test_a_replica_killed_in_mid_run_changes_no_loss(place: Place, undisturbed: dict[int, float]) -> None:
    pid = status_of(NAME)[0]["pid"]

    def kill() -> None:
        wait_for(lambda: max(place.losses("distill", "killed"), default=0) >= 5)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    place.train("distill", DISTILL, "killed")
    killer.join()
    assert status_of(NAME)[0]["pid"] != pid
    assert place.losses("distill", "killed") == undisturbed


@pytest.mark.slow
def test_without_its_application_a_student_stops_in_time_and_goes_on_later(
    place: Place, undisturbed: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refuses to go on with another teacher than the one that it began with."""
    ask, numbers = TeacherClient.request, itertools.count()

    def ask_until_it_is_gone(self: TeacherClient, batch: dict[str, np.ndarray]) -> Any:
        if next(numbers) == 2 * 15:
            take_down(NAME)
        return ask(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherClient, "request", ask_until_it_is_gone)
        with pytest.raises(ValueError, match=f"application '{NAME}' is not deployed on this cluster after 4 s. Deploy it"):
            place.train("distill", DISTILL, "deserted", timeout_seconds=4)
    assert max(place.losses("distill", "deserted")) < NUM_STEPS
    deploy(teacher_config(place.directory), place.directory / "other")
    with pytest.raises(ValueError, match="the stage began with another teacher .*model_sha256"):
        place.train("distill", DISTILL, "deserted")
    deploy(teacher_config(place.directory), place.model)
    started = time.time()
    place.train("distill", DISTILL, "deserted")
    rows = place.rows("distill", "deserted")
    assert rows[10]["time"] < started, "it went on, it did not begin again"
    assert place.losses("distill", "deserted") == undisturbed


@pytest.mark.slow
def test_a_new_version_drops_no_request_and_no_student_mistakes_it_for_the_old_one(place: Place) -> None:
    first = client().fingerprint.digest
    readers = [Reader(client(name=f"reader {number}"), batch()) for number in range(2)]
    student = client(name="student")
    for reader in readers:
        reader.start()
    deploy(
        teacher_config(place.directory, cache={"path": str(place.directory / "cache"), "max_gb": 0.1}, http=None), place.directory / "other"
    )
    second = client().fingerprint.digest
    assert second != first
    wait_for(lambda: all(second in reader.digests for reader in readers))
    for reader in readers:
        reader.stopped.set()
        reader.join()
        assert reader.error is None
        change = reader.digests.index(second)
        assert set(reader.digests[:change]) == {first} and set(reader.digests[change:]) == {second}
    with pytest.raises(ValueError, match="deployed again with another teacher while this job ran .*model_sha256"):
        student.request(batch()).result()
    url = f"http://127.0.0.1:{place.cluster.http_port}/{NAME}/fingerprint"
    wait_for(lambda: requests.get(url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30).status_code == 404)


@pytest.mark.slow
def test_a_second_student_is_taught_from_the_cache(place: Place) -> None:
    """The application has one since it was replaced."""
    place.train("distill", DISTILL, "first")
    before = status_of(NAME)[0]
    place.train("distill", DISTILL, "second")
    after = status_of(NAME)[0]
    assert place.losses("distill", "second") == place.losses("distill", "first")
    assert after["passes"] == before["passes"] and after["cache_hits"] - before["cache_hits"] == NUM_STEPS * 8
    port, digest = ray.nodes()[0]["MetricsExportPort"], after["digest"]
    wait_for(lambda: figure(port, "wfray_teacher_cache_hits_total", digest) >= after["cache_hits"])


@pytest.mark.slow
def test_replicas_follow_the_load(place: Place) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "requests_per_replica": 1, "upscale_delay_seconds": 0.5}
    deploy(teacher_config(place.directory, num_replicas=scaling, http=None), place.model)
    assert len(status_of(NAME)) == 1
    request = SignalRequest(wires=["logits", "topk", "sampled"], num_ids=20)
    reader = Reader(client(request, in_flight=8), batch(4, 128))
    reader.start()
    wait_for(lambda: len(status_of(NAME)) == 2)
    reader.stopped.set()
    reader.join()
    assert reader.error is None and len(set(reader.digests)) == 1


def test_the_job_takes_it_down_and_names_what_is_deployed(place: Place) -> None:
    for changes in ({"status": True}, {"delete": True}):
        with pytest.raises(ValueError, match=f"application 'nobody' is not deployed on this cluster; deployed: .*{NAME}"):
            main(teacher_config(place.directory, application="nobody"), **changes)
    main(teacher_config(place.directory), delete=True)
    assert NAME not in serve.status().applications


@pytest.mark.slow
def test_a_model_that_gives_nonsense_is_not_deployed(place: Place, tokenizer: Any) -> None:
    broken = place.directory / "broken"
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    config = teacher_config(place.directory, application="broken", http=None)
    with pytest.raises(ValueError, match="application 'broken' is deploy_failed, not running: .*not finite"):
        deploy(config, broken)
    serve.delete("broken")
