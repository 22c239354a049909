"""Deploy the teacher application and leave it running for any number of students; see how it does; take it down.

ray job submit --working-dir . -- python -m jobs.teacher --config configs/teacher/smollm2_135m.yaml [--status | --delete]
"""

import json

from actors.connection import connect
from actors.teacher import deploy, status_of, take_down
from jobs.cli import run_job
from wfray.config.teacher import TeacherConfig
from wfray.runs import resolve_home
from wfray.student import materialize

FLAGS = {
    "status": "print what every replica is and did, as JSON, and stop",
    "delete": "take the application down and stop",
}


def main(config: TeacherConfig, status: bool = False, delete: bool = False) -> None:
    """Fetch the model, deploy it, say how to use it."""
    connect()
    if status:
        print(json.dumps(status_of(config.application), indent=2))
    elif delete:
        take_down(config.application)
        print(f"teacher application {config.application!r} is gone")
    else:
        config = with_absolute_paths(config)
        deploy(config, materialize(config.model, resolve_home(config.models)))
        print(f"teacher application {config.application!r} is up; students name it with teacher.application={config.application}")


def with_absolute_paths(config: TeacherConfig) -> TeacherConfig:
    """The configuration with paths that are good in every process: relative ones stand where those of runs do, and not in Ray's copy of
    the working directory, which goes."""
    cache, http = config.cache, config.http
    if cache and "://" not in cache.path:
        cache = cache.model_copy(update={"path": str(resolve_home(cache.path))})
    if http:
        http = http.model_copy(update={"token_file": str(resolve_home(http.token_file))})
    return config.model_copy(update={"cache": cache, "http": http})


if __name__ == "__main__":
    run_job(TeacherConfig, main, flags=FLAGS)
