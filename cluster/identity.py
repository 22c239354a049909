"""Who owns what: every cluster, node and job carries its owner, and only its owner may end it.

An identity is a name and a random secret in `~/.wfray/identity.json`, readable by its owner alone, made at the first use. What is
created carries the name and the secret's SHA-256, so that taking another's name in a configuration or in the environment opens
nothing. This keeps colleagues from ending each other's work by mistake; it does not stop who can read another's home directory.
"""

import getpass
import hashlib
import json
import os
import secrets
from pathlib import Path

from pydantic import BaseModel

from wfray.runs import write_json


class Owner(BaseModel, frozen=True):
    """As what is created carries it."""

    name: str
    key: str
    """SHA-256 of the owner's secret, hex."""


def home() -> Path:
    """Where `wf` keeps what it must remember: `WFRAY_STATE`, else `~/.wfray`."""
    return Path(os.environ.get("WFRAY_STATE") or Path.home() / ".wfray")


def me() -> Owner:
    """The owner who runs this process, made up at the first call."""
    path = home() / "identity.json"
    if not path.exists():
        make_private(path, json.dumps({"name": getpass.getuser(), "secret": secrets.token_hex(32)}))
    identity = json.loads(path.read_text(encoding="utf-8"))
    return Owner(name=identity["name"], key=hashlib.sha256(identity["secret"].encode()).hexdigest())


def make_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, unless it exists."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def require_owner(owner: Owner | None, what: str, action: str, acting: Owner | None = None) -> None:
    """Raise `ValueError` with the owner's name when who acts is not the owner of `what`.

    Args:
        owner: as the thing carries it; None: it carries none.
        what: it is, for example "cluster 'nebius'".
        action: what was asked for, for example "take it down".
        acting: on whose behalf; None: on that of who runs this process.
    """
    acting = acting or me()
    if owner is None:
        raise ValueError(f"{what} carries no owner, so it was not made by wf: {action} with the tool that made it")
    if owner != acting:
        raise ValueError(f"{what} belongs to {owner.name}, not to you ({acting.name}): ask {owner.name} to {action}")


class ClusterRecord(BaseModel):
    """What this machine remembers of a cluster that was made from here: `~/.wfray/clusters/<name>.json`."""

    name: str
    owner: Owner
    config: str
    """The resolved configuration, YAML."""
    sky_name: str
    """The SkyPilot cluster of the head."""
    made_at: float
    """Seconds since 1970."""

    @classmethod
    def path(cls, name: str) -> Path:
        """Where it is kept."""
        return home() / "clusters" / f"{name}.json"

    @classmethod
    def read(cls, name: str) -> "ClusterRecord | None":
        """The record of a cluster, or None."""
        path = cls.path(name)
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self) -> None:
        """Keep it."""
        write_json(self.path(self.name), self.model_dump())


def known_clusters() -> list[ClusterRecord]:
    """All that this machine remembers."""
    return [record for path in sorted((home() / "clusters").glob("*.json")) if (record := ClusterRecord.read(path.stem))]


def token_of(name: str) -> str:
    """The token of a cluster's Ray; raises `ValueError` where this machine has none."""
    path = home() / "clusters" / f"{name}.token"
    if not path.exists():
        raise ValueError(
            f"there is no token for cluster {name!r} in {str(path)!r}: copy it from the machine that made the cluster, mode 600; without "
            "it the cluster's Ray answers nobody"
        )
    return path.read_text(encoding="utf-8").strip()


def make_token(name: str) -> str:
    """The token of a new cluster."""
    path = home() / "clusters" / f"{name}.token"
    if not path.exists():
        make_private(path, secrets.token_hex(32))
    return token_of(name)
