"""A job's driver and Ray's controller start without the science, whose import takes seconds: their workers import it."""

import subprocess
import sys

import pytest

CODE = "import importlib, sys; importlib.import_module({job!r}); print(*({{'transformers', 'datasets', 'llama_cpp'}} & set(sys.modules)))"


@pytest.mark.parametrize("job", ["jobs.distill", "jobs.diffuse"])
def test_a_training_jobs_driver_imports_no_science(job: str) -> None:
    result = subprocess.run([sys.executable, "-c", CODE.format(job=job)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
