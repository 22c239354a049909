"""Whether the teacher that is deployed is the one that taught a stage, asked without loading torch's or the student's code."""

import json
from pathlib import Path

from ray import serve

from actors.applications import is_deployed
from wfray.config.teacher import RECORD

ASK_SECONDS = 60.0
OF_THE_SOURCE = "source_sha256"
"""The field of a fingerprint that is not of what the teacher computes."""


def taught_by_another(application: str, stage: Path) -> bool:
    """Whether `application` is deployed with another teacher than the one that the stage's directory records."""
    record = stage / RECORD
    if not record.exists() or not is_deployed(application):
        return False
    deployed = serve.get_app_handle(application).fingerprint.remote().result(timeout_s=ASK_SECONDS)
    recorded = json.loads(record.read_text(encoding="utf-8"))
    return any(deployed[name] != value for name, value in recorded.items() if name != OF_THE_SOURCE)
