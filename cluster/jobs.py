"""`wf submit`, `runs`, `logs`, `cancel`: a stage as a Ray job on a cluster, with its owner.

A cluster is one that `wf up` made, reached through a tunnel, or any Ray whose dashboard answers at `--address`.
"""

import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests.exceptions import ConnectionError as ConnectionFailed

from cluster.identity import ClusterRecord, Owner, known_clusters, me, require_owner, token_of
from cluster.lifecycle import ROOT, config_of, find
from cluster.reach import Unreachable, tunnel
from cluster.submission import EXCLUDES, RETRY_SECONDS, owned, send
from cluster.tasks import DASHBOARD_PORT, RAY_TOKEN
from cluster.workdir import check_size, version_of

CHECK = """
import sys
from jobs.stages import CONFIGS
try:
    CONFIGS[sys.argv[1]].load(sys.argv[2], sys.argv[3:])
except ValueError as error:
    sys.exit(str(error))
"""
POLL_SECONDS = 1.0
MAX_SILENCE_SECONDS = 600.0
"""How long `wf logs` tries to get back to a cluster."""


@contextmanager
def connected(cluster: str | None, address: str | None) -> Iterator[JobSubmissionClient]:
    """A client of a cluster's jobs.

    Raises:
        ValueError: there is no such cluster, its token is missing, or it cannot be reached.
    """
    if address:
        yield open_client(address)
        return
    record = find(require_one(cluster))
    token = token_of(record.name)
    with tunnel(record.sky_name, [DASHBOARD_PORT]) as (port,):
        yield open_client(f"http://127.0.0.1:{port}", token)


def require_one(cluster: str | None) -> str:
    """The cluster's name; raises `ValueError` where none is given."""
    if cluster is None:
        raise ValueError("say on which cluster: --cluster NAME of one that `wf up` made, or --address URL of a Ray dashboard")
    return cluster


def open_client(address: str, token: str | None = None) -> JobSubmissionClient:
    """A client with this token, by default the one of the environment; raises `ValueError` where nobody answers, or it is refused."""
    # Ray read its way to authenticate from the environment when it was imported.
    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        return JobSubmissionClient(address, headers=headers)
    except ConnectionError as error:
        raise Unreachable(f"no Ray answers at {address}: {error}") from None
    except (RuntimeError, AuthenticationError) as error:
        raise ValueError(f"Ray at {address} refuses: {str(error).splitlines()[0]}. Is its token in {RAY_TOKEN}?") from None


def stage_command(stage: str, config: str, overrides: list[str]) -> list[str]:
    """What runs on the head."""
    return ["python", "-m", f"jobs.{stage}", "--config", config, *overrides]


def run_name(overrides: list[str], config: str) -> str:
    """The run that a stage writes to, as far as its command tells."""
    given = [value.removeprefix("run=") for value in overrides if value.startswith("run=")]
    return Path(given[-1]).name if given else Path(config).stem


def check_stage(stage: str, config: str, overrides: list[str]) -> None:
    """Raise `ValueError` when a stage does not take its configuration, before anything is sent; the floor above knows its type."""
    result = subprocess.run([sys.executable, "-c", CHECK, stage, config, *overrides], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(result.stderr.strip())


def submit(stage: str, config: str, overrides: list[str], *, cluster: str | None, address: str | None, follow: bool, dry_run: bool) -> None:
    """Send a stage as a job; with `follow`, show its output to the end.

    Raises:
        ValueError: the configuration is wrong, the working directory is too large, or the cluster cannot be reached.
    """
    check_stage(stage, config, overrides)
    num_bytes, version = check_size(ROOT), version_of(ROOT)
    if changed := int(version.get("changed_files", "0")):
        print(f"{changed} files differ from commit {version['commit'][:10]}: they go along as they are", file=sys.stderr)
    command = stage_command(stage, config, overrides)
    identity = f"{re.sub('[^a-z0-9]', '-', me().name.lower())}-{stage}-{uuid.uuid4().hex[:8]}"
    metadata = {**owned(stage, run_name(overrides, config)), **version}
    if dry_run:
        print(f"# {num_bytes / 2**20:.1f} MB of code, sent only if this content is not there yet; metadata {metadata}")
        print(shlex.join(["ray", "job", "submit", "--submission-id", identity, "--working-dir", str(ROOT), "--", *command]))
        return
    with connected(cluster, address) as client:
        runtime = {"working_dir": str(ROOT), "excludes": EXCLUDES}
        send(client, entrypoint=shlex.join(command), submission_id=identity, runtime_env=runtime, metadata=metadata)
        print(f"submitted {identity}", flush=True)
    if follow:
        logs(identity, cluster=cluster, address=address)


def owner_of(job: JobDetails) -> Owner | None:
    """Whose job it is, or None where it does not say."""
    metadata = job.metadata or {}
    return Owner(name=metadata["owner"], key=metadata.get("owner_key", "")) if "owner" in metadata else None


def runs(*, cluster: str | None, address: str | None) -> None:
    """Print the jobs of a cluster, the newest first."""
    with connected(cluster, address) as client:
        jobs = sorted(client.list_jobs(), key=lambda job: -(job.start_time or 0))
    line = "{:<36} {:<10} {:<10} {:<12} {:<20} {:>8}"
    print(line.format("job", "status", "owner", "stage", "run", "minutes"))
    for job in jobs:
        metadata: dict[str, Any] = job.metadata or {}
        minutes = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 60_000
        shown = [metadata.get(name, "-") for name in ("owner", "stage", "run")]
        print(line.format(job.submission_id or "-", job.status.value.lower(), *shown, f"{minutes:.1f}"))


def cancel(identity: str, *, cluster: str | None, address: str | None, dry_run: bool) -> None:
    """End one job of one's own; there is no way to end several.

    Raises:
        ValueError: it is somebody else's, carries no owner, or is over.
    """
    with connected(cluster, address) as client:
        job = find_job(client, identity)
        require_owner(owner_of(job), f"job {identity!r}", "cancel it")
        if job.status.is_terminal():
            raise ValueError(f"job {identity!r} is over already: {job.status.value.lower()}")
        if dry_run:
            print(shlex.join(["ray", "job", "stop", identity]))
            return
        client.stop_job(identity)
    print(f"cancelled {identity}")


def find_job(client: JobSubmissionClient, identity: str) -> JobDetails:
    """A job by its id; raises `ValueError` where there is none."""
    for job in client.list_jobs():
        if job.submission_id == identity:
            return job
    raise ValueError(f"there is no job {identity!r} on this cluster: wf runs lists them")


def logs(identity: str, *, cluster: str | None, address: str | None) -> None:
    """Show a job's output until it ends; a network that goes away is waited for, and nothing is shown twice.

    Raises:
        ValueError: there is no such job, or the cluster does not come back within ten minutes.
    """
    shown, lost = 0, None
    while True:
        try:
            with connected(cluster, address) as client:
                find_job(client, identity)
                for text in outputs(client, identity):
                    lost = None
                    print(text[shown:], end="", flush=True)
                    shown = len(text)
                return
        except (ConnectionError, ConnectionFailed, Unreachable, RuntimeError) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > MAX_SILENCE_SECONDS:
                raise ValueError(f"the cluster is gone for {MAX_SILENCE_SECONDS:.0f} s: {error}") from None
            print(f"connection lost, trying again: {str(error).splitlines()[0]:.120}", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def outputs(client: JobSubmissionClient, identity: str) -> Iterator[str]:
    """All of a job's output, again and again until it has ended."""
    status = JobStatus.PENDING
    while not status.is_terminal():
        status = client.get_job_status(identity)
        yield client.get_job_logs(identity)
        if not status.is_terminal():
            time.sleep(POLL_SECONDS)


def only_cluster_on(cloud: str) -> ClusterRecord:
    """The one cluster that was made from this machine on a cloud; raises `ValueError` where there is none or several."""
    found = [record for record in known_clusters() if config_of(record).provider.kind == cloud]
    if len(found) != 1:
        names = ", ".join(record.name for record in found) or "none"
        raise ValueError(f"--cloud {cloud} means the one cluster there, but there are: {names}. Name it with --cluster, or wf up one")
    return found[0]
