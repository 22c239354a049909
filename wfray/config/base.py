"""The base of every configuration tree: strict, immutable, hashable, loaded from YAML with `key=value` overrides.

`load` reads one YAML file, applies overrides from the command line left to right (`train.tokens=20000`; values are YAML, list
elements are addressed by number) and validates. A value `{include: FILE}` stands for that file's content. An unknown key, a
missing file or a wrong type raises `ValueError` naming the
key and the mend. `digest` is the SHA-256 of the canonical JSON of a tree without its `Location` fields, so moving a run
directory does not change what a stage is.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class Location:
    """Marks a field that says where a thing is kept, or how many work on it in what pieces, not what it is: left out of the digest."""


RunPath = Annotated[str, Location()]
Precision = Literal["auto", "bfloat16", "float32"]
"""Of products; auto: bfloat16 on GPUs and on CPUs that multiply it, float32 elsewhere (`wfray.quant.precision`)."""


class Config(BaseModel):
    """A strict, immutable node of a configuration tree. The docstring under a field becomes its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Self:
        """Read `path`, apply `overrides` and validate.

        Args:
            path: a YAML file with one mapping.
            overrides: `dotted.key=value` strings; the value is parsed as YAML.

        Raises:
            ValueError: the file is missing or no mapping, an override is malformed, or a key or value is not allowed.
        """
        tree = read_yaml(Path(path))
        for override in overrides or []:
            apply_override(tree, override)
        return cls.parse(tree, origin=str(path))

    @classmethod
    def parse(cls, tree: dict[str, Any], origin: str) -> Self:
        """Validate a plain tree; `origin` names it in error messages."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ValueError(describe_errors(cls, error, origin)) from None

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of this tree without its `Location` fields."""
        canonical = json.dumps(without_locations(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved tree, defaults included, as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class StageConfig(Config):
    """A configuration whose stage leaves a directory with a manifest in the run."""

    run: RunPath
    """The run directory."""
    stage: str
    """This stage's directory in the run."""

    @property
    def parents(self) -> dict[str, str]:
        """For each input, its role and the name of a stage of this run or the path of a directory or file."""
        return {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises `ValueError` when the file is missing or holds something else."""
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise ValueError(f"configuration file {str(path)!r} must hold a mapping of keys, not {type(tree).__name__}")
    return tree


def read_tree(path: Path) -> Any:
    """Read a YAML file, includes resolved, or raise `ValueError` with the files that stand beside the missing one."""
    if not path.is_file():
        nearby = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; there are: {', '.join(nearby)}" if nearby else ""
        raise ValueError(f"configuration file {str(path)!r} does not exist{hint}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"configuration file {str(path)!r} is not valid YAML: {error}") from None
    return resolve_includes(tree, path.parent)


def resolve_includes(value: Any, directory: Path) -> Any:
    """Replace every mapping `{include: FILE}` by the content of that YAML file, relative to `directory`."""
    if isinstance(value, dict):
        if set(value) == {"include"}:
            return read_tree(directory / str(value["include"]))
        return {key: resolve_includes(item, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve_includes(item, directory) for item in value]
    return value


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in a plain tree, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r} must look like key=value, for example train.tokens=20000")
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[child_index(node, part, key)]
    if not isinstance(node, dict | list):
        raise ValueError(f"override {override!r}: {'.'.join(parents)} is a single value, so it has no key {last!r}")
    try:
        node[child_index(node, last, key)] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: {text!r} is no value in YAML ({str(error).splitlines()[0]})") from None


def child_index(node: Any, part: str, key: str) -> Any:
    """The index of `part` in a mapping or list; raises `ValueError` where there is none."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part)
    raise ValueError(f"override key {key!r}: {part!r} does not exist there")


def describe_errors(model: type[BaseModel], error: ValidationError, origin: str) -> str:
    """One line per wrong key: where, what, and the mend."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key{suggest(model, str(item['loc'][-1]))}")
        else:
            given = "" if isinstance(item["input"], dict) else f" (got {item['input']!r:.80})"
            lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}{given}")
    return f"{origin} is not a valid {model.__name__}:\n" + "\n".join(lines)


def suggest(model: type[BaseModel], key: str) -> str:
    """`; did you mean ...?` when a known key of the tree is close to `key`."""
    known = {name for node in nested_models(model, set()) for name in node.model_fields}
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nested_models(annotation: Any, seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """All pydantic models reachable from a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            for field in annotation.model_fields.values():
                nested_models(field.annotation, seen)
        return seen
    for argument in getattr(annotation, "__args__", ()):
        nested_models(argument, seen)
    return seen


def differing_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """`key before -> after` of every leaf in which two plain trees differ, keys dotted."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [line for key in keys for line in differing_keys(before.get(key), after.get(key), f"{prefix}.{key}".lstrip("."))]
    return [] if before == after else [f"{prefix} {before!r:.60} -> {after!r:.60}"]


def without_locations(value: Any) -> Any:
    """The JSON form of a tree without `Location` fields."""
    if isinstance(value, Config):
        return {
            name: without_locations(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not any(isinstance(mark, Location) for mark in field.metadata)
        }
    if isinstance(value, dict):
        return {str(key): without_locations(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_locations(item) for item in value]
    return value
