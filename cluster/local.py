"""A Ray cluster of one's own on this machine: head and dashboard, on free ports, with a session directory of its own.

`ray start --head --block` runs as a child in its own process group. Ray ends its processes when that child ends, and the kernel
ends the child when its parent dies (unless `keep`), so a crashed driver leaves nothing behind and no other cluster is ever touched:
there is no `ray stop` here, which would end everybody's. All its servers listen on loopback: Ray's own switch for that is the
one by which it behaves on macOS and Windows, where a cluster is one machine (`LOOPBACK`).

    python -m cluster.local          # start one, print how to submit to it, stay until Ctrl-C
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ray.job_submission import JobSubmissionClient
from requests.exceptions import ConnectionError as ConnectionFailed

from wfray.config.pipeline import LocalClusterConfig
from wfray.runs.children import die_with_parent, free_ports

START_TIMEOUT_SECONDS = 180
STOP_TIMEOUT_SECONDS = 8
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""In the environment of every process of a cluster on loopback, and of those that join it."""


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster that this process started; as a context manager it ends, and where all went well its logs go with it."""

    process: subprocess.Popen[bytes]
    address: str
    """`host:port` for `RAY_ADDRESS`."""
    dashboard: str
    """URL for `ray job submit --address`."""
    http_port: int
    """Where Ray Serve's HTTP proxy listens, once something is served."""
    session: Path
    """Ray's session directory, with its logs."""

    def stop(self) -> None:
        """End this cluster's processes and no others."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if error is None:
            shutil.rmtree(self.session)


def start_local_cluster(config: LocalClusterConfig, home: Path, keep: bool = False) -> LocalCluster:
    """Start a head with its dashboard and wait until jobs can be submitted.

    Args:
        config: sizes of the cluster.
        home: the directory under which relative paths of jobs stand (`WFRAY_HOME`).
        keep: let it live when this process ends.

    Raises:
        ValueError: Ray did not start; the message names its log.
    """
    # Ray's sockets have paths of at most 107 bytes, so the session directory must be short.
    session = Path(tempfile.mkdtemp(prefix="wf-", dir="/tmp"))
    *free, agent, agent_grpc = free_ports(5)
    gcs, dashboard, http = (port or other for port, other in zip((config.port, config.dashboard_port, config.http_port), free, strict=True))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": config.auth_mode,
        "RAY_USAGE_STATS_ENABLED": "0",
        **LOOPBACK,
        "WFRAY_HOME": str(home),
        "WFRAY_HTTP_PORT": str(http),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Student and teacher share the cores: a thread that waits at a barrier spins some microseconds, which spares it most sleeps (a
        # training step alone takes 0.88 of its time with none), and then sleeps (two steps at once take twice theirs with libgomp's own).
        "GOMP_SPINCOUNT": "1000",
        # Nobody takes this machine away, and a worker's end is seen as soon as it happens.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command += [
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
    ]
    command += [f"--num-cpus={config.num_cpus}", f"--object-store-memory={int(config.object_store_gb * 2**30)}", f"--temp-dir={session}"]
    log = session / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=None if keep else die_with_parent,
        )
    cluster = LocalCluster(process, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", http, session)
    os.environ.update({"RAY_AUTH_MODE": config.auth_mode, **LOOPBACK})
    try:
        wait_until_ready(cluster, agent, log)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def wait_until_ready(cluster: LocalCluster, agent_port: int, log: Path) -> None:
    """Wait until the dashboard answers and the node's agent, which starts jobs for it, listens."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            JobSubmissionClient(cluster.dashboard).list_jobs()
            socket.create_connection(("127.0.0.1", agent_port)).close()
            return
        except (ConnectionError, ConnectionFailed, RuntimeError):
            if cluster.process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"the local Ray cluster did not start; see {log}:\n{log.read_text()[-1000:]}") from None
            time.sleep(0.5)


def main() -> None:
    """Start a cluster in the foreground."""
    parser = argparse.ArgumentParser(description="A local Ray cluster to submit jobs to; Ctrl-C ends it.")
    parser.add_argument("--num-cpus", type=int, default=os.cpu_count())
    parser.add_argument("--object-store-gb", type=float, default=1.0)
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--http-port", type=int, default=8000)
    arguments = parser.parse_args()
    config = LocalClusterConfig(**vars(arguments))
    cluster = start_local_cluster(config, home=Path.cwd())
    print(f"Ray is up at {cluster.address}, dashboard {cluster.dashboard}, logs in {cluster.session}. Submit a stage:")
    print(f"  ray job submit --address {cluster.dashboard} --working-dir . -- python -m jobs.pack --config configs/pack/quickstart.yaml")
    try:
        cluster.process.wait()
    except KeyboardInterrupt:
        cluster.stop()


if __name__ == "__main__":
    main()
