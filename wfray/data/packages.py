"""Where installed packages keep their files."""

import importlib.util
from pathlib import Path


def package_directory(package: str) -> Path:
    """The directory of an installed top-level package, found without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed: install it, or correct its import name")
    return Path(spec.submodule_search_locations[0])
