"""SkyPilot as a command-line tool: the exact commands, and what its errors mean.

The tool lives in an environment of its own, found as `sky` on the PATH or named by `WF_SKY`. No command here names more than one
SkyPilot cluster, none has a wildcard, and there is none that ends all.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from wfray.config.cluster import GOOGLE, NO_GPU_ON_GCP
from wfray.runs import write_aside

CLOUDS = ("nebius", "runpod")
NAME = re.compile(r"wf-[a-z0-9-]+")
INSTALL = "set it up with `make skypilot`, or name its program in WF_SKY"
MEANINGS = {
    r"NoCloudAccess|No cloud access|no cloud is enabled|No enabled cloud": "no credentials: SkyPilot may use no cloud. Set them up and "
    "look with `sky check nebius runpod`",
    r"Invalid accelerator|not found in the catalog|Catalog does not contain|No resource satisfying": "unknown or unavailable machine: "
    "look with `sky gpus list --infra nebius` (or runpod) and change accelerators or regions",
    r"ResourcesUnavailable|Failed to acquire resources|Failed to provision all|no capacity|out of stock": "no capacity anywhere it was "
    "tried: add alternatives to accelerators, or wait",
    r"token.*(expired|invalid)|Unauthorized|401|PermissionDenied": "the cloud refuses the credentials: renew them",
}
TRIED = re.compile(r"(?:Trying|Launching on|Provisioning .* on|Failed .* in) ?(.*)")


def sky_program() -> str:
    """The program; raises `ValueError` where there is none."""
    program = os.environ.get("WF_SKY") or shutil.which("sky") or str(Path.home() / ".cache/wfray/skypilot/bin/sky")
    if not Path(program).exists():
        raise ValueError(f"SkyPilot is not here: {INSTALL}")
    return program


def require_name(name: str) -> None:
    """Raise `ValueError` unless `name` is one SkyPilot cluster of ours: `sky down` expands wildcards."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of one cluster made by wf (wf-...): nothing else is launched or taken down")


def refuse_gcp(task: dict[str, Any]) -> None:
    """Raise `ValueError` when a task could land on GCP, however it is written."""
    resources = task["resources"]
    options = [{**resources, **option} for key in ("any_of", "ordered") for option in resources.get(key, [])] or [resources]
    for option in options:
        places = {str(option[key]).partition("/")[0].strip().lower() for key in ("infra", "cloud") if option.get(key)}
        if places & set(GOOGLE):
            raise ValueError(NO_GPU_ON_GCP)
        if not places or not places <= set(CLOUDS):
            raise ValueError(f"a task must name its cloud, one of {', '.join(CLOUDS)}, lest another be taken: {option}")


def launch_command(name: str, task: Path, config: Path | None, envs: dict[str, str], secrets: list[str]) -> list[str]:
    """`sky launch` of one cluster; repeating it for a cluster that is there changes nothing but its job."""
    require_name(name)
    command = ["sky", "launch", "-y", "-d", "-c", name]
    command += ["--config", str(config)] if config else []
    for key, value in envs.items():
        command += ["--env", f"{key}={value}"]
    for secret in secrets:
        command += ["--secret", secret]
    return [*command, str(task)]


def down_command(name: str) -> list[str]:
    """`sky down` of one cluster."""
    require_name(name)
    return ["sky", "down", "-y", name]


def start(command: list[str], log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Begin a command whose end is looked for later; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        return subprocess.Popen(
            resolved(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=environment()
        )


def run(command: list[str], cwd: Path | None = None, show: bool = False) -> str:
    """Run a command to its end; its output.

    Raises:
        ValueError: it failed; the message says what that means, where it is known.
    """
    process = subprocess.Popen(
        resolved(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment()
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if show:
            print(line, end="", flush=True)
    if process.wait():
        raise ValueError(explain(command, "".join(lines)))
    return "".join(lines)


def resolved(command: list[str]) -> list[str]:
    """The command with the program in its place."""
    return [sky_program(), *command[1:]]


def environment() -> dict[str, str]:
    """Without usage collection."""
    return {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}


def explain(command: list[str], output: str) -> str:
    """A message for a failed command: what it means, what was tried, the last lines."""
    meaning = next((text for pattern, text in MEANINGS.items() if re.search(pattern, output)), "it failed")
    tried = tried_places(output)
    where = f"; tried: {', '.join(tried)}" if tried else ""
    tail = "\n".join(output.strip().splitlines()[-8:])
    return f"`{shlex.join(command[:2])}`: {meaning}{where}\n{tail}"


def tried_places(output: str) -> list[str]:
    """Where SkyPilot looked for a machine, in its own words, without repetition."""
    return list(dict.fromkeys(match.group(1).strip(" .") for match in TRIED.finditer(output) if match.group(1).strip(" .")))


def status(name: str | None = None, everybody: bool = False) -> list[dict[str, Any]]:
    """SkyPilot's own records: name, status, user_name, labels and more; of one cluster or of all."""
    command = ["sky", "status", "-o", "json", *(["-u"] if everybody else []), *([name] if name else [])]
    output = run(command)
    start = output.find("[")
    return json.loads(output[start:]) if start >= 0 else []


def write_task(path: Path, task: dict[str, Any]) -> Path:
    """Write a task's YAML, after the last look at where it may land."""
    refuse_gcp(task)
    return write_yaml(path, task)


def write_yaml(path: Path, tree: dict[str, Any]) -> Path:
    """Write a YAML file, whole or not at all; the path."""
    with write_aside(path) as aside:
        aside.write_text(to_yaml(tree), encoding="utf-8")
    return path


class Literal(str):
    """A text of several lines, written as such."""


def to_yaml(task: dict[str, Any]) -> str:
    """YAML in the order of `task`, scripts as blocks."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(Literal, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"))
    blocks = {key: Literal(value) if isinstance(value, str) and "\n" in value else value for key, value in task.items()}
    return yaml.dump(blocks, Dumper=Dumper, sort_keys=False, width=10**6)
