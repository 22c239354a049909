"""Watching a cluster: Prometheus' scrape configuration, and a dashboard for the Grafana that Ray's own dashboard shows.

    python -m cluster.monitoring DIR        # writes all files, for a Prometheus and a Grafana of one's own

Ray lists the metrics endpoints of all its nodes in a file, which Prometheus reads again whenever it changes; so nodes that come and go are
scraped without a restart. What a cluster costs comes from the head (`cluster.costs`). A head starts both programs where they are installed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from wfray.runs import write_aside

DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
"""Where Ray lists its endpoints, unless it was given another directory."""
COSTS_PORT, PROMETHEUS_PORT, GRAFANA_PORT = 8267, 9090, 3000
UID = "wrinklefree"
SCRAPE_SECONDS = 5

PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("Student: tokens a second", "short", {"ray_wfray_student_tokens_per_second": "{{run}} {{stage}}"}),
    ("Student: loss", "short", {"ray_wfray_student_loss": "{{run}} {{stage}}"}),
    (
        "Student: share of the time spent waiting",
        "percentunit",
        {
            "ray_wfray_student_data_wait_fraction": "data, {{run}} {{stage}}",
            "ray_wfray_student_teacher_wait_fraction": "teacher, {{run}} {{stage}}",
        },
    ),
    ("Student: done", "percentunit", {"ray_wfray_student_progress": "{{run}} {{stage}}"}),
    ("Teacher: requests waiting", "short", {"sum by (application) (ray_wfray_teacher_queue)": "{{application}}"}),
    ("Teacher: tokens a second", "short", {"sum by (application) (ray_wfray_teacher_tokens_per_second)": "{{application}}"}),
    (
        "Serving: latency of requests",
        "ms",
        {
            f"histogram_quantile({quantile}, sum by (le, application) (rate(ray_serve_http_request_latency_ms_bucket[1m])))": (
                f"{{{{application}}}} {quantile:.0%}"
            )
            for quantile in (0.5, 0.95, 0.99)
        },
    ),
    ("Serving: requests a second", "reqps", {"sum by (application) (rate(ray_serve_num_http_requests_total[1m]))": "{{application}}"}),
    ("Cost an hour", "currencyUSD", {"wfray_cluster_dollars_per_hour": "dollars an hour"}),
    ("Cost so far", "currencyUSD", {"wfray_cluster_dollars": "dollars"}),
    ("Machines", "short", {"wfray_cluster_nodes": "{{group}} {{phase}}"}),
    ("GPUs", "percent", {"avg by (ip) (ray_node_gpus_utilization)": "{{ip}}"}),
]
"""Title, Grafana's unit, and query -> legend."""


def prometheus_config(discovery: str = DISCOVERY, costs_port: int = COSTS_PORT) -> dict[str, Any]:
    """What to scrape."""
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [
            {"job_name": "ray", "file_sd_configs": [{"files": [discovery], "refresh_interval": "10s"}]},
            {"job_name": "cost", "static_configs": [{"targets": [f"127.0.0.1:{costs_port}"]}]},
        ],
    }


def grafana_dashboard() -> dict[str, Any]:
    """Two panels a row, the last hour, a new look every five seconds."""
    panels = [panel(number, *parts) for number, parts in enumerate(PANELS)]
    return {
        "uid": UID,
        "title": "WrinkleFree",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": panels,
    }


def panel(number: int, title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    """One graph."""
    targets = [{"refId": chr(ord("A") + row), "expr": expr, "legendFormat": legend} for row, (expr, legend) in enumerate(queries.items())]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": UID},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def write_files(directory: Path, discovery: str = DISCOVERY, costs_port: int = COSTS_PORT) -> None:
    """`prometheus.yml`, and below `grafana/` the dashboard with what makes Grafana take it up."""
    source = {"name": "Prometheus", "uid": UID, "type": "prometheus", "url": f"http://127.0.0.1:{PROMETHEUS_PORT}", "isDefault": True}
    boards = {"name": UID, "type": "file", "options": {"path": str((directory / "grafana/dashboards").resolve())}}
    files: dict[str, Any] = {
        "prometheus.yml": prometheus_config(discovery, costs_port),
        "grafana/dashboards/wrinklefree.json": grafana_dashboard(),
        "grafana/provisioning/datasources/wrinklefree.yaml": {"apiVersion": 1, "datasources": [source]},
        "grafana/provisioning/dashboards/wrinklefree.yaml": {"apiVersion": 1, "providers": [boards]},
    }
    for name, tree in files.items():
        with write_aside(directory / name) as aside:
            aside.write_text(
                json.dumps(tree, indent=1) if name.endswith(".json") else yaml.safe_dump(tree, sort_keys=False), encoding="utf-8"
            )


def start_monitoring(directory: Path, costs_port: int) -> list["subprocess.Popen[bytes]"]:
    """Start the programs that are installed, on loopback, with everything they write below `directory`."""
    write_files(directory, costs_port=costs_port)
    commands = {
        "prometheus": [
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
        ],
        "grafana-server": [
            "--homepath=/usr/share/grafana",
            f"cfg:paths.data={directory / 'grafana/data'}",
            f"cfg:paths.provisioning={directory / 'grafana/provisioning'}",
            "cfg:server.http_addr=127.0.0.1",
            "cfg:auth.anonymous.enabled=true",
            "cfg:security.allow_embedding=true",
        ],
    }
    started = []
    for program, arguments in commands.items():
        if path := shutil.which(program):
            with (directory / f"{program}.log").open("ab") as log:
                started.append(subprocess.Popen([path, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT))
        else:
            print(f"{program} is not installed here: {directory} has the files for one elsewhere", flush=True)
    return started


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
