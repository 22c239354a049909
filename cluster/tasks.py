"""The YAML of what SkyPilot launches: a head, workers of a group, a RunPod pod.

All carry the code (`workdir`), the pinned environment (`requirements.lock`), their owner, and a backstop: Ray runs in the
foreground of SkyPilot's job, so when it has ended, whoever has forgotten the machine, SkyPilot's autostop deletes it. Values of
secrets are nowhere here: `null` makes SkyPilot read them from the environment of `sky launch`, where it redacts them.
"""

import json
from typing import Any

from cluster.identity import Owner
from wfray.config.cluster import Accelerated, ClusterConfig, Extra, Group, Head, Machine, Nebius, Pod, RunPod, num_gpus

RAY_TOKEN = "RAY_AUTH_TOKEN"
ROLE_CAPACITY = 1000
"""Of a role's custom resource on each of its nodes: it keeps others away, GPUs and cores are what runs out."""
SHARED = "/mnt/wfray"
"""Where the shared filesystem is mounted on Nebius."""
GCS_PORT, DASHBOARD_PORT, AGENT_PORT, SERVE_PORT = 6379, 8265, 52366, 8000
"""SkyPilot's own Ray has 6380, 8266 and 52365."""

SETUP = """set -e
SUDO=$(command -v sudo || true)
command -v g++ >/dev/null || { $SUDO apt-get update -q && $SUDO apt-get install -y -q build-essential; }
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --user --quiet uv
[ -x ~/wfray-env/bin/python ] || uv venv --quiet --python 3.11 ~/wfray-env
uv pip install --quiet --python ~/wfray-env/bin/python -r requirements.lock"""
GCLOUD = """command -v gcloud >/dev/null || {
  curl -sSfL https://dl.google.com/dl/cloudsdk/channels/rapid/downloads/google-cloud-cli-linux-x86_64.tar.gz | tar -xz -C ~
  ~/google-cloud-sdk/install.sh --quiet --path-update true
}"""
MONITORING = """$SUDO apt-get install -y -q --no-install-recommends prometheus
$SUDO systemctl disable --now --quiet prometheus 2>/dev/null || true
command -v grafana-server >/dev/null || {
  curl -sSfL -o /tmp/grafana.deb https://dl.grafana.com/oss/release/grafana_11.6.0_amd64.deb
  $SUDO apt-get install -y -q /tmp/grafana.deb
}"""
SKY = 'uv tool install --quiet "skypilot[nebius,runpod]==0.14.1"'
NOTICE_UNIT = """$SUDO tee /etc/systemd/system/wfray-notice.service >/dev/null <<UNIT
[Unit]
After=ssh.service user.slice
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'touch $HOME/wfray-notice; sleep 50'
TimeoutStopSec=60
[Install]
WantedBy=multi-user.target
UNIT
$SUDO systemctl enable --now --quiet wfray-notice.service"""
"""systemd stops first what it started last: before SSH sessions and users' processes are told to end."""
ENVIRONMENT = """set -e
export PATH="$HOME/wfray-env/bin:$HOME/.local/bin:$HOME/google-cloud-sdk/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=1200"""


def head_task(config: ClusterConfig, owner: Owner) -> dict[str, Any]:
    """The head on Nebius; its autoscaler launches the workers."""
    assert config.head is not None and isinstance(config.provider, Nebius)
    resources = {**machine_resources(config.head), "infra": f"nebius/{config.provider.region}", **common_resources(config, owner, "head")}
    return {
        "name": head_name(config),
        "workdir": ".",
        "resources": resources,
        "envs": {**common_envs(config, owner), "WF_HOURS": str(config.head.max_hours)},
        "secrets": dict.fromkeys([RAY_TOKEN, *config.secrets]),
        "setup": "\n".join([SETUP, *first_setup(config), SKY]),
        "run": f'{ENVIRONMENT}\nexport WFRAY_HOME="${{WFRAY_HOME:-{SHARED}}}"\nexec python -m cluster.head',
    }


def worker_task(config: ClusterConfig, owner: Owner, group_name: str, sky_name: str) -> dict[str, Any]:
    """One worker of a group, or `nodes_together` of them. `WF_HEAD` is given at the launch, by the head."""
    group, provider = config.groups[group_name], config.provider
    assert isinstance(provider, Nebius)
    resources = {**common_resources(config, owner, group_name), **placed(group, [f"nebius/{provider.region}"])}
    if group.nodes_together > 1:
        resources["network_tier"] = "best"
    return {
        "name": sky_name,
        "workdir": ".",
        "num_nodes": group.nodes_together,
        "resources": resources,
        "envs": {**common_envs(config, owner), "WF_GROUP": group_name, "WF_NODE": sky_name, "WF_HEAD": None},
        "secrets": dict.fromkeys([RAY_TOKEN, *config.secrets]),
        "setup": "\n".join([SETUP, *storage_setup(config), *engine_setup(group.extras), *([NOTICE_UNIT] if group.spot else [])]),
        "run": f'{ENVIRONMENT}\nexport WFRAY_HOME="${{WFRAY_HOME:-{SHARED}}}"\nexec python -m cluster.worker',
        "config": {"hooks": [{"run": "touch ~/wfray-notice", "events": ["preemption"], "timeout": 60}]},
    }


def pod_task(config: ClusterConfig, owner: Owner) -> dict[str, Any]:
    """A RunPod pod: head, student and teacher in one."""
    assert config.pod is not None and isinstance(config.provider, RunPod)
    places = [f"runpod/{region}" for region in config.provider.regions] or ["runpod"]
    return {
        "name": head_name(config),
        "workdir": ".",
        "resources": {**common_resources(config, owner, "pod"), **placed(config.pod, places)},
        "envs": {**common_envs(config, owner), "WF_HOURS": str(config.pod.max_hours)},
        "secrets": dict.fromkeys([RAY_TOKEN, *config.secrets]),
        "setup": "\n".join([SETUP, *first_setup(config), *engine_setup(config.pod.extras)]),
        "run": f'{ENVIRONMENT}\nexport WFRAY_HOME="${{WFRAY_HOME:-$HOME/wfray-runs}}"\nexec python -m cluster.head',
        "config": {"hooks": [{"run": "touch ~/wfray-notice", "events": ["preemption"], "timeout": 60}]},
    }


def first_task(config: ClusterConfig, owner: Owner) -> dict[str, Any]:
    """What `wf up` launches."""
    return pod_task(config, owner) if config.pod else head_task(config, owner)


def head_name(config: ClusterConfig) -> str:
    """The SkyPilot cluster of the head, or the pod."""
    return f"wf-{config.name}"


def machine_resources(machine: Head | Accelerated) -> dict[str, Any]:
    """Cores, memory, disk. The cores of a GPU machine come with its GPUs."""
    is_cpu = isinstance(machine, Machine) and not getattr(machine, "accelerators", [])
    cores = {"cpus": f"{machine.cpus}+"} if is_cpu else {}
    memory = {"memory": f"{machine.memory_gb}+"} if machine.memory_gb else {}
    return {**cores, **memory, "disk_size": machine.disk_gb}


def placed(machine: Group | Pod, places: list[str]) -> dict[str, Any]:
    """Every accelerator in every place, the preferred first, for SkyPilot to fail over."""
    base: dict[str, Any] = {**machine_resources(machine), **({"use_spot": True} if machine.spot else {})}
    options = [{"infra": place, "accelerators": as_pair(name)} for name in machine.accelerators for place in places]
    if not options:
        return {**base, "infra": places[0]}
    return {**base, **options[0]} if len(options) == 1 else {**base, "ordered": options}


def as_pair(accelerator: str) -> str:
    """H100:1 of H100."""
    return f"{accelerator.partition(':')[0]}:{num_gpus(accelerator)}"


def common_resources(config: ClusterConfig, owner: Owner, group: str) -> dict[str, Any]:
    """The backstop, and whose it is."""
    return {
        "autostop": {"idle_minutes": config.limits.autostop_minutes, "down": True, "wait_for": "jobs"},
        "labels": {"wfray-owner": label(owner.name), "wfray-cluster": config.name, "wfray-group": group},
    }


def label(text: str) -> str:
    """What every cloud takes as a label."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())[:60] or "unknown"


def common_envs(config: ClusterConfig, owner: Owner) -> dict[str, str | None]:
    """What every node is told."""
    return {
        "WF_CLUSTER": config.model_dump_json(exclude_none=True),
        "WF_OWNER": owner.model_dump_json(),
        "WFRAY_ROLES": json.dumps(config.roles),
    }


def storage_setup(config: ClusterConfig) -> list[str]:
    """fsspec's packages for the mirror; gcloud on pods, whose image has none."""
    if config.storage is None:
        return []
    packages = "uv pip install --quiet --python ~/wfray-env/bin/python 's3fs>=2026.2' 'gcsfs>=2026.2'"
    return [packages, *([GCLOUD] if config.pod and config.storage.startswith("gs://") else [])]


def first_setup(config: ClusterConfig) -> list[str]:
    """What a head or a pod has besides."""
    return [*storage_setup(config), *([MONITORING] if config.monitoring else [])]


def engine_setup(extras: list[Extra]) -> list[str]:
    """Each engine in an environment of its own: their pins fit neither each other nor the project."""
    return [
        f'uv venv --quiet --python 3.11 ~/engines/{name} && uv pip install --quiet --python ~/engines/{name}/bin/python ".[{name}]"'
        for name in extras
    ]


def sky_config(config: ClusterConfig) -> dict[str, Any]:
    """What SkyPilot takes from its configuration alone, not from a task: the network and the shared filesystem."""
    if isinstance(config.provider, RunPod):
        return {}
    filesystem = {"filesystem_id": config.provider.filesystem_id, "attach_mode": "READ_WRITE", "mount_path": SHARED}
    region = {config.provider.region: {"filesystems": [filesystem]}}
    return {"nebius": {"security_group_name": config.provider.security_group, "region_configs": region}}
