"""What the teacher's job hands to processes that work elsewhere."""

from pathlib import Path

import pytest

from jobs.teacher import with_absolute_paths
from wfray.config.teacher import TeacherConfig

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("runs/signals", "{home}/runs/signals"), ("/var/signals", "/var/signals"), ("s3://bucket/signals", "s3://bucket/signals")],
)
def test_relative_paths_stand_where_those_of_runs_do(given: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFRAY_HOME", str(tmp_path))
    changes = [f"cache={{path: '{given}', max_gb: 1}}", "http={token_file: secrets/token}"]
    config = with_absolute_paths(TeacherConfig.load(ROOT / "configs/teacher/smollm2_135m.yaml", changes))
    assert config.cache is not None and config.cache.path == wanted.format(home=tmp_path)
    assert config.http is not None and config.http.token_file == str(tmp_path / "secrets" / "token")
