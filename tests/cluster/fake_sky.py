"""A stand-in for the `sky` program, for tests: its clusters are processes of this machine, kept under `FAKE_SKY`.

`launch` runs a task's `run` with its environment, as SkyPilot's job would; `down` ends what came of it. Every call is written to
calls.jsonl. Where a file `fail` holds a text, `launch` fails with that text as often as the file has lines.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

HOME = Path(os.environ["FAKE_SKY"])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def note(argv: list[str]) -> None:
    with (HOME / "calls.jsonl").open("a") as file:
        file.write(json.dumps({"argv": argv, "time": time.time()}) + "\n")


def fail_if_told() -> None:
    path = HOME / "fail"
    lines = path.read_text().splitlines() if path.exists() else []
    if lines:
        path.write_text("\n".join(lines[1:]))
        sys.exit(lines[0])


def launch(arguments: argparse.Namespace) -> None:
    fail_if_told()
    task = yaml.safe_load(Path(arguments.task).read_text())
    given = dict(pair.split("=", 1) for pair in arguments.env)
    envs = {**(task.get("envs") or {}), **given}
    secrets = {name: os.environ[name] for name in arguments.secret}
    missing = [name for name, value in envs.items() if value is None] + [name for name in task["secrets"] if name not in secrets]
    if missing:
        sys.exit(f"ValueError: values missing for {missing}")
    home = HOME / arguments.cluster
    home.mkdir(exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "WFRAY_STATE"},
        **envs,
        **secrets,
        "HOME": str(home),
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        "SKYPILOT_NODE_RANK": "0",
        # Ray has no joining on loopback alone; the cluster's token guards its ports.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        **({"WF_AGENT_PORT": str(free_port())} if "WF_HEAD" in envs else {}),
    }
    with (home / "job.log").open("ab") as log:
        job = subprocess.Popen(["bash", "-c", task["run"]], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    record = home / "cluster.json"
    jobs = json.loads(record.read_text())["jobs"] if record.exists() else []
    record.write_text(json.dumps({"jobs": [*jobs, job.pid], "labels": task["resources"]["labels"], "status": "UP"}))
    print(f"Launching on fake ({arguments.cluster})")


def family(cluster: str) -> list[psutil.Process]:
    """Every process of a cluster."""
    found = []
    for pid in json.loads((HOME / cluster / "cluster.json").read_text())["jobs"]:
        if psutil.pid_exists(pid):
            job = psutil.Process(pid)
            found += [job, *job.children(recursive=True)]
    return found


def down(arguments: argparse.Namespace) -> None:
    record = HOME / arguments.cluster / "cluster.json"
    if not record.exists():
        sys.exit(f"Cluster(s) not found: {arguments.cluster}")
    processes = family(arguments.cluster)
    for process in processes[:1]:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=15)
    for process in alive:
        process.kill()
    record.unlink()


def status(arguments: argparse.Namespace) -> None:
    records = [path for path in sorted(HOME.glob("*/cluster.json")) if not arguments.clusters or path.parent.name in arguments.clusters]
    print(json.dumps([{"name": path.parent.name, "user_name": "ana", **json.loads(path.read_text())} for path in records]))


def main() -> None:
    note(sys.argv[1:])
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("launch")
    command.add_argument("-y", action="store_true", required=True)
    command.add_argument("-d", action="store_true", required=True)
    command.add_argument("-c", dest="cluster", required=True)
    command.add_argument("--config")
    command.add_argument("--env", action="append", default=[])
    command.add_argument("--secret", action="append", default=[])
    command.add_argument("task")
    command.set_defaults(run=launch)
    command = commands.add_parser("down")
    command.add_argument("-y", action="store_true", required=True)
    command.add_argument("cluster")
    command.set_defaults(run=down)
    command = commands.add_parser("status")
    command.add_argument("-o", choices=["json"], required=True)
    command.add_argument("-u", action="store_true")
    command.add_argument("clusters", nargs="*")
    command.set_defaults(run=status)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
