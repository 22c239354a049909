"""`.sync.conf`, the presets of `wf sync`.

[project]
exclude = data/*, *.npz          # besides what is always kept here

[host gpu-box]                   # wf sync gpu-box; the only host, or the one named `default`, needs no name
address = ana@10.0.0.7
path = work/wrinklefree
port = 22
key = ~/.ssh/id_ed25519
"""

import configparser
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ALWAYS_KEPT = (
    *(".git/", ".venv/", "venv/", "runs/", "checkpoints/", "wandb/", "__pycache__/", ".*_cache/", "node_modules/"),
    *("*.safetensors", "*.gguf", "*.ckpt", "*.pt", "*.pth", "*.distcp", "step-*/"),
    *(".env", ".env.*", "*.pem", "*.key", "*.token", "id_rsa*", "id_ed25519*", "credentials*", ".netrc", "*secret*", ".sync.conf"),
)
"""Repositories' insides, environments, results, weights, and whatever may be a secret."""
HOST_KEYS = {"address", "path", "port", "key"}


@dataclass(frozen=True)
class Host:
    """A development host."""

    name: str
    address: str
    """`user@host`, or a name of ~/.ssh/config."""
    path: str
    """The directory there; relative ones stand under the home directory."""
    port: int | None = None
    key: str | None = None


@dataclass(frozen=True)
class SyncConfig:
    """One `.sync.conf`."""

    root: Path
    exclude: tuple[str, ...]
    hosts: dict[str, Host]

    @property
    def excludes(self) -> tuple[str, ...]:
        """Everything that stays here."""
        return (*ALWAYS_KEPT, *self.exclude)

    def host(self, name: str | None) -> Host:
        """A host; raises `ValueError` naming those that there are."""
        chosen = name or ("default" if "default" in self.hosts else next(iter(self.hosts)) if len(self.hosts) == 1 else None)
        if chosen not in self.hosts:
            raise ValueError(
                f"say which host ({', '.join(self.hosts)} in {self.root / '.sync.conf'})" + (f", not {name!r}" if name else "")
            )
        return self.hosts[chosen]


def read_sync_config(root: Path) -> SyncConfig:
    """The presets of a project.

    Raises:
        ValueError: there are none, or one is wrong; the message says how they look.
    """
    path = root / ".sync.conf"
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    try:
        if not parser.read(path, encoding="utf-8"):
            raise ValueError(f"there is no {path}; it looks like this:\n{(__doc__ or '').partition(chr(10) * 2)[2]}")
    except configparser.Error as error:
        raise ValueError(f"{path} is not valid: {error}") from None
    project = dict(parser["project"]) if parser.has_section("project") else {}
    require_known(path, "project", set(project), {"exclude"})
    exclude = tuple(part.strip() for part in project.get("exclude", "").split(",") if part.strip())
    sections = [name for name in parser.sections() if name != "project"]
    hosts = dict(read_host(path, name, dict(parser[name])) for name in sections)
    if not hosts:
        raise ValueError(f"{path} names no host: add a section [host NAME] with address and path")
    return SyncConfig(root, exclude, hosts)


def read_host(path: Path, section: str, values: dict[str, str]) -> tuple[str, Host]:
    """One section `[host NAME]`, or `[host]`, which is the host named default."""
    kind, _, name = section.partition(" ")
    if kind != "host":
        raise ValueError(f"{path}: unknown section [{section}]; there are [project] and [host NAME]")
    require_known(path, section, set(values), HOST_KEYS)
    if missing := {"address", "path"} - set(values):
        raise ValueError(f"{path}: [{section}] needs {', '.join(sorted(missing))}")
    parts = PurePosixPath(values["path"].removeprefix("~/")).parts
    if not parts or ".." in parts or values["path"].rstrip("/") in ("", ".", "~") or (values["path"].startswith("/") and len(parts) < 3):
        raise ValueError(f"{path}: path {values['path']!r} of [{section}] is too near the root: files there that are not here are deleted")
    if values["address"].startswith("-"):
        raise ValueError(f"{path}: address {values['address']!r} of [{section}] is no host")
    name = name.strip() or "default"
    return name, Host(
        name, values["address"], values["path"].removeprefix("~/"), int(values["port"]) if "port" in values else None, values.get("key")
    )


def require_known(path: Path, section: str, keys: set[str], known: set[str]) -> None:
    """Raise `ValueError` for keys that do not exist."""
    if unknown := keys - known:
        raise ValueError(f"{path}: [{section}] has no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
