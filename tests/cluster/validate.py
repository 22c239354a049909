"""SkyPilot's own judgement of task files, in the environment where it lives: it needs no cloud.

Every file is checked against SkyPilot's schema and read as a task; where `--catalogue DIR` holds SkyPilot's catalogue files, its optimizer
chooses a machine besides, as if Nebius and RunPod had credentials. Prints one line a file; a fault ends it.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import yaml


def validate(path: Path, launch: bool) -> str:
    """What SkyPilot makes of one file."""
    import sky
    from sky.utils import common_utils, schemas

    task: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "resources" not in task:
        common_utils.validate_schema(task, schemas.get_config_schema(), "invalid configuration: ")
        return "configuration"
    task["envs"] = {name: value if value is not None else "given at the launch" for name, value in task["envs"].items()}
    task["secrets"] = {name: value or "secret" for name, value in task["secrets"].items()}
    common_utils.validate_schema(task, schemas.get_task_schema(), "invalid task: ")
    parsed = sky.Task.from_yaml_config(copy.deepcopy(task))
    for resources in parsed.resources:
        resources.validate()
    return choose(sky, parsed) if launch else "task"


def choose(sky: Any, task: Any) -> str:
    """The machine that SkyPilot's optimizer takes."""
    from sky import check, clouds, optimizer

    check.get_cached_enabled_clouds_or_refresh = lambda *a, **k: [clouds.Nebius(), clouds.RunPod()]
    with sky.Dag() as dag:
        dag.add(task)
    optimizer.Optimizer.optimize(dag, quiet=True)
    return f"task, on {task.best_resources}"


def main() -> None:
    """Judge all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choose", action="store_true", help="let the optimizer choose a machine from the catalogue in ~/.sky/catalogs")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.files:
        print(f"{path.name}: valid {validate(path, arguments.choose)}", flush=True)


if __name__ == "__main__":
    main()
