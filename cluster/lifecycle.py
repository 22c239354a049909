"""`wf up`, `wf down`, `wf status`, `wf cost`: a cluster from its making to its end."""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import nodes, sky, tasks
from cluster.costs import estimate_text
from cluster.identity import ClusterRecord, Owner, home, known_clusters, make_token, me, require_owner
from cluster.nodes import State
from cluster.prices import node_price
from cluster.reach import Unreachable, run_there, ssh_command
from wfray.config.cluster import ClusterConfig

ROOT = Path(__file__).resolve().parent.parent
STATE = "~/.wfray/head/state.json"
END_WORKERS = f"mkdir -p ~/.wfray/head && touch ~/.wfray/head/{nodes.ENDING}"
"""The head may have come up without ever running: then it has no workers either."""
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Plan:
    """What `wf up` will do."""

    task: dict[str, Any]
    sky_config: dict[str, Any]
    command: list[str]

    def text(self) -> str:
        """Files and commands, exactly as they will be."""
        parts = [f"# {self.command[-1]}\n{sky.to_yaml(self.task)}"]
        if self.sky_config:
            parts.append(f"# {self.command[self.command.index('--config') + 1]}\n{sky.to_yaml(self.sky_config)}")
        return "\n".join([*parts, shlex.join(self.command)])


def plan_up(config: ClusterConfig, owner: Owner) -> Plan:
    """The files and the command that make a cluster."""
    directory = home() / "clusters"
    task, own = tasks.first_task(config, owner), tasks.sky_config(config)
    config_path = directory / f"{config.name}.sky.yaml" if own else None
    command = sky.launch_command(tasks.head_name(config), directory / f"{config.name}.task.yaml", config_path, {}, list(task["secrets"]))
    return Plan(task, own, command)


def up(config: ClusterConfig, dry_run: bool) -> None:
    """Make a cluster, or bring one of one's own up to its configuration.

    Raises:
        ValueError: the name is somebody else's, a secret is missing, or SkyPilot cannot launch it.
    """
    plan = plan_up(config, me())
    sky.refuse_gcp(plan.task)
    if dry_run:
        print(plan.text())
        if config.groups:
            name = next(iter(config.groups))
            print(f"\n# by the autoscaler on the head, when group {name} is needed:")
            print(sky.to_yaml(tasks.worker_task(config, me(), name, f"{tasks.head_name(config)}-{name}-1")))
        print(estimate_text(config))
        return
    require_secrets(config)
    require_name_free(config)
    record = ClusterRecord(name=config.name, owner=me(), config=config.to_yaml(), sky_name=tasks.head_name(config), made_at=time.time())
    token = make_token(config.name)
    sky.write_task(Path(plan.command[-1]), plan.task)
    if plan.sky_config:
        sky.write_yaml(Path(plan.command[plan.command.index("--config") + 1]), plan.sky_config)
    record.write()
    os.environ[tasks.RAY_TOKEN] = token
    print(estimate_text(config), flush=True)
    sky.run(plan.command, cwd=ROOT, show=True)
    print(f"cluster {config.name!r} is up. Next: wf dashboard {config.name}; wf submit ... --cluster {config.name}; wf down {config.name}")


def require_secrets(config: ClusterConfig) -> None:
    """Raise `ValueError` naming the secrets that this environment does not have."""
    if missing := [name for name in config.secrets if not os.environ.get(name)]:
        raise ValueError(f"secrets are not set: {', '.join(missing)}. Export them, or take them out of `secrets` in the configuration")


def require_name_free(config: ClusterConfig) -> None:
    """Raise `ValueError` when a cluster of this name exists that is not one's own."""
    record = ClusterRecord.read(config.name)
    if record is not None:
        require_owner(record.owner, f"cluster {config.name!r}", "change it")
        return
    for row in sky.status(tasks.head_name(config), everybody=True):
        if row["name"] == tasks.head_name(config):
            owner = (row.get("labels") or {}).get("wfray-owner") or row.get("user_name") or "somebody else"
            raise ValueError(f"the name {config.name!r} is taken by a cluster of {owner}: choose another with name=...")


def find(name: str) -> ClusterRecord:
    """The record of a cluster; raises `ValueError` naming those that are known."""
    record = ClusterRecord.read(name)
    if record is None:
        known = ", ".join(record.name for record in known_clusters()) or "none"
        raise ValueError(f"no cluster {name!r} was made from this machine (known: {known}): wf up configs/cluster/{name}.yaml")
    return record


def config_of(record: ClusterRecord) -> ClusterConfig:
    """As it was when the cluster was made."""
    return ClusterConfig.parse(yaml.safe_load(record.config), f"the record of cluster {record.name!r}")


def down(name: str, dry_run: bool, abandon: bool) -> None:
    """Take a cluster of one's own down: its workers first, then its head.

    Raises:
        ValueError: it is somebody else's; or its head cannot be reached to end its workers, and it is not to be abandoned.
    """
    record = find(name)
    require_owner(record.owner, f"cluster {name!r}", "take it down")
    command = sky.down_command(record.sky_name)
    if dry_run:
        print(f"{shlex.join(ssh_command(record.sky_name, END_WORKERS))}   # the autoscaler takes every worker down")
        print(shlex.join(command))
        return
    if config_of(record).groups:
        end_workers(record, abandon)
    sky.run(command, show=True)
    for suffix in ("json", "token", "task.yaml", "sky.yaml"):
        (home() / "clusters" / f"{name}.{suffix}").unlink(missing_ok=True)
    print(f"cluster {name!r} is gone")


def end_workers(record: ClusterRecord, abandon: bool) -> None:
    """Have the head take its workers down, and wait for that."""
    try:
        run_there(record.sky_name, END_WORKERS)
        while (state := read_state(record)) and state.nodes:
            print(f"waiting for {', '.join(state.nodes)} to go", flush=True)
            time.sleep(POLL_SECONDS)
    except ValueError as error:
        minutes = 15 + config_of(record).limits.autostop_minutes
        if not abandon:
            raise ValueError(
                f"{error}. Its workers, if any, cannot be told to go: with --abandon the head is taken down, and they delete themselves "
                f"within {minutes} minutes"
            ) from None
        print(f"the head is abandoned; its workers delete themselves within {minutes} minutes", file=sys.stderr)


def read_state(record: ClusterRecord) -> State | None:
    """What the head remembers of its workers."""
    text = run_there(record.sky_name, f"cat {STATE} 2>/dev/null || true")
    return State.model_validate_json(text) if text.strip() else None


def facts(record: ClusterRecord) -> dict[str, Any]:
    """All that is known of a cluster."""
    config, now = config_of(record), time.time()
    machine = config.head or config.pod
    assert machine is not None
    rate = node_price(config, machine).dollars_per_hour
    state = (read_state(record) if config.groups else None) or State(head_since=record.made_at)
    return {
        "name": record.name,
        "owner": record.owner.name,
        "hours": (now - record.made_at) / 3600,
        "dollars_per_hour": rate + state.dollars_per_hour,
        "dollars": state.spent(rate, now),
        "refused": state.refused,
        "pauses": {name: pause.message for name, pause in state.pauses.items() if pause.until > now},
        "nodes": [
            node.model_dump(include={"name", "group", "num_nodes", "phase", "dollars_per_hour", "message"}) for node in state.nodes.values()
        ],
    }


def status(name: str | None, as_json: bool) -> None:
    """Print what is known of one cluster, or of all that were made from this machine."""
    for record in [find(name)] if name else known_clusters():
        try:
            known = facts(record)
        except Unreachable as error:
            known = {"name": record.name, "owner": record.owner.name, "unreachable": str(error)}
        print(json.dumps(known) if as_json else text_of(known), flush=True)
    if not name and not known_clusters():
        print("no cluster was made from this machine: wf up configs/cluster/nebius.yaml")


def text_of(known: dict[str, Any]) -> str:
    """The same for people."""
    if "unreachable" in known:
        return f"{known['name']} of {known['owner']}: {known['unreachable']}"
    lines = [
        f"{known['name']} of {known['owner']}: {known['hours']:.1f} h, ${known['dollars_per_hour']:.2f}/h, ${known['dollars']:.2f} spent, "
        f"{len(known['nodes'])} workers"
    ]
    for node in known["nodes"]:
        message = node["message"].partition("\n")[0]
        lines.append(f"  {node['name']}  {node['phase']}  ${node['dollars_per_hour']:.2f}/h  {message}".rstrip())
    lines += [f"  group {group} pauses: {message.splitlines()[0]}" for group, message in known["pauses"].items()]
    lines += [f"  not launched: {known['refused']}"] if known["refused"] else []
    return "\n".join(lines)


def cost(target: str, overrides: list[str]) -> None:
    """An estimate for a configuration file; what was spent for the name of a cluster."""
    if target.endswith(".yaml"):
        print(estimate_text(ClusterConfig.load(target, overrides)))
        return
    record = find(target)
    print(estimate_text(config_of(record)))
    print(text_of(facts(record)))
