"""Deploy the teacher application and leave it running for any number of students.

ray job submit --working-dir . -- python -m jobs.teacher --config configs/teacher/smollm2_135m.yaml
"""

from actors.connection import connect
from actors.teacher import deploy
from jobs.cli import run_job
from wfray.config.teacher import TeacherConfig
from wfray.runs import resolve_home
from wfray.student import materialize


def main(config: TeacherConfig) -> None:
    """Fetch the model, deploy it, say how to use it."""
    directory = materialize(config.model, resolve_home(config.models))
    connect()
    deploy(config, directory)
    print(f"teacher application {config.application!r} is up; students name it with teacher.application={config.application}")


if __name__ == "__main__":
    run_job(TeacherConfig, main)
