"""Submitting a stage to a Ray cluster as a job, and following it to its end."""

import logging
import shlex
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Literal, Protocol

import requests
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.identity import me

POLL_SECONDS = 0.5
EXCLUDES = ["/.git/", "/.venv/", "/runs/", "/tests/", "/benchmarks/", ".*_cache/"]
"""Not needed by jobs: what Ray sends to the cluster is the code alone."""
NOT_READY, READY_SECONDS, RETRY_SECONDS = "No available agent", 120.0, 3.0

# They tell of every upload, across the view.
for logger in (dashboard_sdk.logger, sdk.logger, logging.getLogger("ray._private")):
    logger.setLevel(logging.ERROR)


class View(Protocol):
    """Where progress is shown."""

    def start(self, stage: str) -> None: ...

    def poll(self) -> None: ...

    def finish(self, stage: str, status: Literal["done", "skipped", "failed"], seconds: float, note: str = "") -> None: ...


def run_stage(name: str, command: list[str], dashboard: str, root: Path, view: View, log: Path) -> None:
    """Submit one stage and wait for it; when the waiting is interrupted, the job is stopped.

    Args:
        name: the stage's name, for the view and the job's id.
        command: arguments of `python`.
        dashboard: URL of the cluster's dashboard.
        root: the repository, sent to the cluster as the job's working directory.
        view: told when it starts, every moment, and when it ends.
        log: where the job's output is kept.

    Raises:
        ValueError: the job failed; the message holds the end of its log.
    """
    client = JobSubmissionClient(dashboard)
    view.start(name)
    started = time.monotonic()
    job = send(
        client,
        entrypoint=shlex.join(["python", *command]),
        submission_id=f"wf-{name}-{uuid.uuid4().hex[:8]}",
        runtime_env={"working_dir": str(root), "excludes": EXCLUDES},
        metadata=owned(name, log.parents[1].name),
    )
    try:
        status = follow(client, job, view, dashboard)
    except KeyboardInterrupt:
        # It must not go on writing where the next attempt will.
        client.stop_job(job)
        raise
    seconds, output = time.monotonic() - started, client.get_job_logs(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(output, encoding="utf-8")
    if status != JobStatus.SUCCEEDED:
        message = failure_message(output)
        view.finish(name, "failed", seconds, message)
        raise ValueError(f"stage {name} failed: {message}\nMend it and run the same command again: what is done is skipped. Its log: {log}")
    view.finish(name, "done", seconds)


def send(client: JobSubmissionClient, **job: Any) -> str:
    """Submit a job; its id. A head that has just started takes none for some seconds."""
    ends = time.monotonic() + READY_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if NOT_READY not in str(error) or time.monotonic() > ends:
                raise
            print("the head is still starting", file=sys.stderr, flush=True)
            time.sleep(RETRY_SECONDS)


def owned(stage: str, run: str) -> dict[str, str]:
    """What a job carries: whose it is, what it does, and for which run."""
    owner = me()
    return {"owner": owner.name, "owner_key": owner.key, "stage": stage, "run": run}


def follow(client: JobSubmissionClient, job: str, view: View, dashboard: str) -> JobStatus:
    """Wait for the job's end; raises `ValueError` where the cluster has gone."""
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            view.poll()
            time.sleep(POLL_SECONDS)
    except requests.ConnectionError as error:
        raise ValueError(f"the cluster at {dashboard} is gone ({type(error).__name__}); the same command goes on from here") from None
    return status


def failure_message(log: str) -> str:
    """The job's own error message where it printed one, else the end of its log."""
    lines = log.strip().splitlines()
    marked = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[marked[-1] :]).removeprefix("error: ") if marked else "\n".join(lines[-15:])
