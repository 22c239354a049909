"""Prometheus takes the scrape configuration and every query of the dashboard; the cost exporter is scraped for real."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from actors import student_metrics, teacher_metrics
from cluster.costs import start_exporter
from cluster.monitoring import PANELS, grafana_dashboard, prometheus_config, write_files
from cluster.nodes import State
from tests.cluster.conftest import tiny_config
from wfray.runs.children import free_port

needs_prometheus = pytest.mark.skipif(shutil.which("promtool") is None, reason="prometheus is not installed")


def queries() -> list[str]:
    return [query for _, _, queries in PANELS for query in queries]


@needs_prometheus
def test_prometheus_takes_the_configuration_and_every_query(tmp_path: Path) -> None:
    write_files(tmp_path)
    rules = {
        "groups": [{"name": "panels", "rules": [{"record": f"panel_{number}", "expr": query} for number, query in enumerate(queries())]}]
    }
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    subprocess.run(["promtool", "check", "config", str(tmp_path / "prometheus.yml")], check=True)
    subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], check=True)


def test_the_dashboard_shows_figures_that_exist(tmp_path: Path) -> None:
    write_files(tmp_path)
    board = json.loads((tmp_path / "grafana/dashboards/wrinklefree.json").read_text())
    assert board == grafana_dashboard() and len({panel["id"] for panel in board["panels"]}) == len(PANELS)
    asked = set(re.findall(r"ray_wfray_(student|teacher)_(\w+)", " ".join(queries())))
    known = {("student", name) for name in student_metrics.GAUGES} | {("teacher", name) for name in teacher_metrics.GAUGES}
    assert asked and asked <= known


@needs_prometheus
def test_costs_are_scraped(tmp_path: Path) -> None:
    costs, port, config = free_port(), free_port(), tiny_config()
    (tmp_path / "state.json").write_text(State(head_since=time.time() - 7200).model_dump_json())
    start_exporter(config, tmp_path, costs)
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(prometheus_config(str(tmp_path / "none.json"), costs) | {"global": {"scrape_interval": "1s"}}))
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        dollars = wait_for_value(port, "wfray_cluster_dollars")
        assert dollars == pytest.approx(2 * wait_for_value(port, "wfray_cluster_dollars_per_hour"), rel=0.05)
    finally:
        server.terminate()
        server.wait()


def wait_for_value(port: int, query: str) -> float:
    """The value of a query, once there is one above zero."""
    ends = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={query}") as answer:
                found = json.load(answer)["data"]["result"]
            if found and float(found[0]["value"][1]):
                return float(found[0]["value"][1])
        except OSError:
            pass
        assert time.monotonic() < ends
        time.sleep(0.2)
