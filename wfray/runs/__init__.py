"""Run directories: atomic files, stage manifests, metrics. `runs/<run>/<stage>/{manifest.json, metrics.jsonl, ...}`."""

from wfray.runs.files import remove, remove_partials, sha256_of, write_aside, write_json
from wfray.runs.metrics import MetricsLog, read_metrics
from wfray.runs.stage import Manifest, Stage, resolve_home, stage_manifests

__all__ = [
    "Manifest",
    "MetricsLog",
    "Stage",
    "read_metrics",
    "remove",
    "remove_partials",
    "resolve_home",
    "sha256_of",
    "stage_manifests",
    "write_aside",
    "write_json",
]
