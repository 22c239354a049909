"""`wf` and the jobs of a real Ray: sent with their owner, followed through a network that goes away, ended by their owner alone."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.local import LocalCluster
from cluster.submission import owned
from cluster.wf import main
from wfray.runs import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def client(shared_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSubmissionClient:
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "ana"))
    return JobSubmissionClient(shared_cluster.dashboard)


def test_a_stage_is_sent_with_its_owner_and_followed(
    client: JobSubmissionClient, shared_cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--address", shared_cluster.dashboard]
    main(["submit", "pack", "--config", "configs/pack/tiny.yaml", f"run={tmp_path}/run", "--follow", *place])
    shown = capsys.readouterr().out
    assert "tokens packed in" in shown and Manifest.read(tmp_path / "run" / "pack").status == "complete"  # type: ignore[union-attr]
    identity = re.search(r"submitted (\S+)", shown)[1]  # type: ignore[index]
    metadata = next(job.metadata for job in client.list_jobs() if job.submission_id == identity)
    assert metadata is not None and metadata["stage"] == "pack" and metadata["run"] == "run" and len(metadata["owner_key"]) == 64
    main(["runs", *place])
    assert re.search(rf"{identity} +succeeded +{metadata['owner']} +pack +run", capsys.readouterr().out)


def test_only_its_owner_ends_a_job(
    client: JobSubmissionClient,
    shared_cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = ["--address", shared_cluster.dashboard]
    job = client.submit_job(entrypoint="sleep 600", metadata=owned("pack", "run"))
    nobodys = client.submit_job(entrypoint="sleep 600")
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "ben"))
    for identity, message in ((job, "belongs to"), (nobodys, "carries no owner"), ("*", "there is no job")):
        with pytest.raises(SystemExit):
            main(["cancel", identity, *place])
        assert message in capsys.readouterr().err
    assert not client.get_job_status(job).is_terminal() and not client.get_job_status(nobodys).is_terminal()
    monkeypatch.setenv("WFRAY_STATE", str(tmp_path / "ana"))
    main(["cancel", job, *place])
    client.stop_job(nobodys)
    ends = time.monotonic() + 60
    while client.get_job_status(job) != JobStatus.STOPPED:
        assert time.monotonic() < ends
        time.sleep(0.2)


class Wire:
    """A TCP way to a port that can be cut and mended."""

    def __init__(self, target: int) -> None:
        self.target, self.is_cut, self.sockets = target, False, []  # type: ignore[var-annotated]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            with suppress(OSError):
                here, _ = self.listener.accept()
                if self.is_cut:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    def copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.is_cut = True
        for end in self.sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(shared_cluster: LocalCluster) -> Iterator[Wire]:
    wire = Wire(int(shared_cluster.dashboard.rpartition(":")[2]))
    yield wire
    wire.listener.close()


def test_logs_go_on_after_the_network_was_cut(
    client: JobSubmissionClient, wire: Wire, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = tmp_path / "go"
    script = f"echo first; while [ ! -e {flag} ]; do sleep 0.1; done; echo second"
    job = client.submit_job(entrypoint=script)
    follower = threading.Thread(target=main, args=(["logs", job, "--address", f"http://127.0.0.1:{wire.port}"],))
    follower.start()
    out = err = ""

    def wait_for(text: str) -> None:
        nonlocal out, err
        ends = time.monotonic() + 90
        while text not in out + err:
            assert time.monotonic() < ends, out + err
            time.sleep(0.1)
            new = capsys.readouterr()
            out, err = out + new.out, err + new.err

    wait_for("first\n")
    wire.cut()
    wait_for("connection lost, trying again")
    flag.touch()
    wire.is_cut = False
    wait_for("second\n")
    follower.join(30)
    assert not follower.is_alive() and out.count("first\n") == 1 and out.count("second\n") == 1
