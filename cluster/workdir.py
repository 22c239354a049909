"""The code that a job takes along: how large it is, and whether it is what was committed.

Ray names the package by the hash of its content, so unchanged code is not sent again. What git ignores, and `EXCLUDES`, stays here.
"""

import fnmatch
import subprocess
from pathlib import Path

from cluster.submission import EXCLUDES

MAX_BYTES = 100 * 2**20
NUM_CULPRITS = 5


def travelling(root: Path) -> list[Path]:
    """The files of a working directory that are sent, relative to it."""
    listed = git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = listed.split("\0") if listed is not None else [str(path.relative_to(root)) for path in root.rglob("*")]
    return [Path(name) for name in names if name and (root / name).is_file() and not is_excluded(name)]


def is_excluded(name: str) -> bool:
    """Whether `EXCLUDES` keeps a file back."""
    parts = name.split("/")
    for pattern in EXCLUDES:
        bare = pattern.strip("/")
        candidates = parts[:1] if pattern.startswith("/") else parts
        if any(fnmatch.fnmatch(part, bare) for part in candidates):
            return True
    return False


def check_size(root: Path) -> int:
    """The bytes that are sent.

    Raises:
        ValueError: more than 100 MB; the message names the largest files.
    """
    sizes = sorted(((root / path).stat().st_size, str(path)) for path in travelling(root))
    total = sum(size for size, _ in sizes)
    if total > MAX_BYTES:
        culprits = ", ".join(f"{name} ({size / 2**20:.0f} MB)" for size, name in reversed(sizes[-NUM_CULPRITS:]))
        raise ValueError(
            f"the working directory {str(root)!r} is {total / 2**20:.0f} MB, above {MAX_BYTES // 2**20}: {culprits}. "
            "Move data out of it, or name it in .gitignore"
        )
    return total


def version_of(root: Path) -> dict[str, str]:
    """The commit, and how many files differ from it; nothing outside a git repository."""
    commit = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain")
    return {} if commit is None or changed is None else {"commit": commit.strip(), "changed_files": str(len(changed.splitlines()))}


def git(root: Path, *arguments: str) -> str | None:
    """The output of a git command, or None outside a repository."""
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return result.stdout if result.returncode == 0 else None
