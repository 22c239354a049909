"""One stage of a run: its directory, its manifest, and whether it is done.

`manifest.json` holds the status, the resolved configuration and its hash, the parents (by identity), the outputs with SHA-256
and bytes, the figures measured, wall time and library versions. A stage is done when its manifest is complete, the
configuration and the parents' identities are unchanged and every output still has its recorded hash. A field that the configuration's
class has gained since counts as its default, so a newer version of the code leaves done what was done: what such a default does
has to be what was done without the field. The identity of a stage
covers what it is (configuration, parents, outputs), never when or where it ran, so redoing a stage with an equal result
leaves its children done.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from wfray.config.base import Config, StageConfig, differing_keys
from wfray.runs.files import remove, remove_partials, sha256_of, size_of, write_aside, write_json
from wfray.runs.lock import LOCK, lock
from wfray.runs.metrics import MetricsLog

LIBRARIES = ["wrinklefree-ray", "ray", "torch", "transformers", "numpy", "safetensors", "gguf", "llama-cpp-python"]

OWN = {"manifest.json", "config.yaml", LOCK}
"""Files that a stage writes on entering."""


class Output(BaseModel):
    """A file or directory that a stage made, relative to the stage's directory."""

    path: str
    sha256: str
    num_bytes: int


class Manifest(BaseModel):
    """What a stage is and made; see the module docstring."""

    stage: str
    status: Literal["running", "complete", "failed"]
    config: dict[str, Any]
    config_sha256: str
    parents: dict[str, str]
    outputs: list[Output] = []
    figures: dict[str, Any] = {}
    error: str | None = None
    started: float
    wall_seconds: float = 0.0
    versions: dict[str, str] = {}

    @property
    def identity(self) -> str:
        """SHA-256 of stage, configuration, parents and outputs."""
        outputs = sorted((output.path, output.sha256) for output in self.outputs)
        essence = json.dumps([self.stage, self.config_sha256, sorted(self.parents.items()), outputs])
        return hashlib.sha256(essence.encode()).hexdigest()

    def is_of(self, config: Config, parents: dict[str, str]) -> bool:
        """Whether this is of an equal configuration, see the module docstring, and of these parents."""
        try:
            recorded = type(config).parse(self.config, "manifest.json")
        except ValueError:
            return False
        return recorded.digest() == config.digest() and self.parents == parents

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The manifest in `directory`, or None when there is none."""
        path = directory / "manifest.json"
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


class Stage:
    """A stage at work. Use as a context manager: leaving it with an error records a failed manifest, and never a whole one.

    Within it the directory is locked: entering waits for another process that is at work there, and raises `ValueError` if it
    stays or has completed the stage.
    """

    @classmethod
    def of(cls, config: StageConfig) -> Self:
        """The stage that a configuration describes.

        Raises:
            ValueError: a parent does not exist or is not complete.
        """
        return cls(config.run, config.stage, config, config.parents)

    def __init__(self, run: str | Path, name: str, config: Config, parents: dict[str, str]) -> None:
        """Open the stage `name` of the run directory `run`.

        Args:
            run: the run directory; a relative one stands under `$WFRAY_HOME` (see `resolve_home`).
            name: the stage's directory below it.
            config: the resolved configuration.
            parents: for each input of the configuration, the name of a stage of this run or the path of a directory or file.

        Raises:
            ValueError: a parent does not exist or is not complete.
        """
        self.run = resolve_home(run)
        self.name = name
        self.config = config
        self.directory = self.run / name
        self.inputs = {role: self._locate(role, reference) for role, reference in parents.items()}
        self.parents = {role: identity_of(path) for role, path in self.inputs.items()}
        self._found = Manifest.read(self.directory)
        self.resumed = False
        """Within the stage: whether it goes on from an interrupted attempt of this configuration and these parents."""
        self.figures: dict[str, Any] = {}
        self._outputs: list[Path] = []

    def _locate(self, role: str, reference: str) -> Path:
        own = self.run / reference
        path = own if own.exists() else resolve_home(reference)
        if not path.exists():
            raise ValueError(f"{role}: {reference!r} is neither a stage in {str(self.run)!r} nor a path that exists")
        within = path.relative_to(self.run).parts if path.is_relative_to(self.run) else ()
        if within or path.is_dir():
            self._check_parent(role, self.run / within[0] if within else path, path)
        return path

    def _check_parent(self, role: str, stage: Path, path: Path) -> None:
        """Raise `ValueError` where `path`, a stage or something within one, is not what a complete stage made."""
        manifest = Manifest.read(stage) if stage.is_dir() else None
        if manifest is None:
            return
        if manifest.status != "complete":
            raise ValueError(
                f"{role}: stage {stage.name!r} in {str(stage.parent)!r} is {manifest.status}, not complete; run it again first"
            )
        outputs = [stage / output.path for output in manifest.outputs]
        if path != stage and not any(path == output or output in path.parents for output in outputs):
            raise ValueError(
                f"{role}: {str(path)!r} is none of the outputs of stage {stage.name!r}, which are {', '.join(o.name for o in outputs)}"
            )

    @property
    def done(self) -> bool:
        """Whether this stage is complete, of the same configuration and parents, with its outputs unchanged."""
        manifest = Manifest.read(self.directory)
        if manifest is None or manifest.status != "complete":
            return False
        return manifest.is_of(self.config, self.parents) and all(self._is_whole(output) for output in manifest.outputs)

    def _is_whole(self, output: Output) -> bool:
        path = self.directory / output.path
        return path.exists() and size_of(path) == output.num_bytes and sha256_of(path) == output.sha256

    @property
    def resumable(self) -> bool:
        """Whether what an interrupted attempt left here belongs to this configuration and these parents."""
        manifest = Manifest.read(self.directory)
        return manifest is not None and manifest.status != "complete" and manifest.is_of(self.config, self.parents)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.directory)
        if (manifest := Manifest.read(self.directory)) and manifest.status == "complete" and manifest != self._found:
            self._lock.close()
            raise ValueError(f"stage {self.name!r} was completed by another process meanwhile: run the same command again to go on from it")
        self.resumed = self.resumable
        remove_partials(self.directory)
        self.started = time.time()
        self._write("running")
        with write_aside(self.directory / "config.yaml") as aside:
            aside.write_text(self.config.to_yaml(), encoding="utf-8")
        return self

    def protect(self, name: str) -> None:
        """Before the stage: see that nothing of worth is deleted by beginning anew.

        Raises:
            ValueError: an interrupted attempt of another configuration or other parents left files in the directory `name`.
        """
        manifest, place = Manifest.read(self.directory), self.directory / name
        if manifest is None or manifest.status == "complete" or self.resumable or not (place.is_dir() and any(place.iterdir())):
            return
        changes = differing_keys(manifest.config, self.config.model_dump(mode="json"))
        changes += [f"another {role}" for role, identity in self.parents.items() if manifest.parents.get(role) != identity]
        raise ValueError(
            f"{str(place)!r} is of an attempt that differs ({'; '.join(changes)}): go on with that one as it was, give this one another "
            f"name (stage=...), or delete that directory to begin anew"
        )

    def clear(self) -> None:
        """Within the stage: delete what earlier attempts left."""
        for path in self.directory.iterdir():
            if path.name not in OWN:
                remove(path)

    def metrics(self, resume_step: int = 0) -> MetricsLog:
        """This stage's `metrics.jsonl`, cut back to `resume_step`."""
        return MetricsLog(self.directory / "metrics.jsonl", resume_step)

    def add_output(self, path: Path) -> None:
        """Record a file or directory below this stage's directory as an output."""
        self._outputs.append(path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if error is None:
                self._write("complete")
            elif not isinstance(error, OSError):
                self._write("failed", error=f"{type(error).__name__}: {error}")

    def _write(self, status: Literal["running", "complete", "failed"], error: str | None = None) -> None:
        outputs = [
            Output(path=str(path.relative_to(self.directory)), sha256=sha256_of(path), num_bytes=size_of(path)) for path in self._outputs
        ]
        manifest = Manifest(
            stage=self.name,
            status=status,
            config=self.config.model_dump(mode="json"),
            config_sha256=self.config.digest(),
            parents=self.parents,
            outputs=outputs,
            figures=self.figures,
            error=error,
            started=self.started,
            wall_seconds=round(time.time() - self.started, 3),
            versions={name: importlib.metadata.version(name) for name in LIBRARIES if is_installed(name)},
        )
        write_json(self.directory / "manifest.json", manifest.model_dump(mode="json"))


def is_installed(distribution: str) -> bool:
    """Whether a distribution's metadata can be found."""
    return next(iter(importlib.metadata.distributions(name=distribution)), None) is not None


def identity_of(path: Path) -> str:
    """A stage directory's manifest identity; for any other file or directory the SHA-256 of its content."""
    manifest = Manifest.read(path) if path.is_dir() else None
    return manifest.identity if manifest else sha256_of(path)


def stage_manifests(run: Path) -> dict[str, Manifest]:
    """The manifests of all stages of a run directory, by stage name, in the order in which they started."""
    found = {path.parent.name: Manifest.read(path.parent) for path in run.glob("*/manifest.json")}
    manifests = {name: manifest for name, manifest in found.items() if manifest}
    return dict(sorted(manifests.items(), key=lambda item: item[1].started))


def resolve_home(path: str | Path) -> Path:
    """An absolute path; a relative one stands under `$WFRAY_HOME`, or under the working directory outside a Ray job.

    Raises:
        ValueError: the path is relative inside Ray's copy of a working directory, where results would be lost.
    """
    path = Path(path).expanduser()
    if path.is_absolute():
        return path
    home = os.environ.get("WFRAY_HOME")
    if home is None and "working_dir_files" in Path.cwd().parts:
        raise ValueError(
            f"{str(path)!r} is relative, but this job runs in Ray's copy of the working directory, which Ray deletes; "
            f"pass an absolute path, for example run=$PWD/{path}, or set WFRAY_HOME on the cluster"
        )
    return (Path(home) if home else Path.cwd()) / path
