"""Documents of a source: listed once in a seeded order, read again wherever they are packed.

`list_documents` reads a source and returns one reference per document that survives the filters; `read_documents` turns
references back into text on any worker that sees the same files. The order is that of the SHA-256 of seed, source and
document, so it depends on no directory order, machine path or clock, and adding a document moves no other. The list costs
about 300 bytes of memory per document in the process that plans.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wfray.config.data import JsonLines, PackageDocstrings, PackageFiles, PackageJson, Source, StandardLibrary, TextFiles
from wfray.data.packages import package_directory

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
INSTALLED = ["site-packages/*", "dist-packages/*"]


class Document(BaseModel):
    """Where one document stands."""

    file: str
    """Relative to the source's root."""
    index: int
    """Its number in the file."""
    num_bytes: int
    """UTF-8 bytes of its text."""


def list_documents(source: Source, seed: int) -> list[Document]:
    """All documents of `source` that are long enough, in the order of `seed`.

    Raises:
        ValueError: no file or no document survives, a package or folder is missing, a file is not valid UTF-8 or JSON, or
            an object lacks a field.
    """
    files = list_files(source)
    if not files:
        raise ValueError(f"source {source.name}: no file matches in {str(source_root(source))!r}; correct path, glob or exclude")
    documents = [
        Document(file=file, index=index, num_bytes=len(text.encode()))
        for file in files
        for index, text in enumerate(file_texts(source, file))
        if len(text.strip()) >= source.min_characters
    ]
    if not documents:
        raise ValueError(
            f"source {source.name}: none of {len(files)} files holds a document of at least {source.min_characters} characters; "
            "lower min_characters or name other files"
        )
    return sorted(documents, key=lambda document: sort_key(source.name, document, seed))


def sort_key(name: str, document: Document, seed: int) -> bytes:
    """A number drawn for one document."""
    return hashlib.sha256(f"{seed}\0{name}\0{document.file}\0{document.index}".encode()).digest()


def read_documents(source: Source, documents: list[Document]) -> Iterator[str]:
    """The texts of `documents`, in their order; each file is read once and its texts kept only while needed."""
    wanted: dict[str, int] = {}
    for document in documents:
        wanted[document.file] = wanted.get(document.file, 0) + 1
    texts: dict[str, list[str]] = {}
    for document in documents:
        if document.file not in texts:
            texts[document.file] = file_texts(source, document.file)
        yield texts[document.file][document.index]
        wanted[document.file] -= 1
        if wanted[document.file] == 0:
            del texts[document.file]


def source_root(source: Source) -> Path:
    """The directory that the source's files are relative to."""
    match source:
        case StandardLibrary():
            return Path(sysconfig.get_path("stdlib"))
        case JsonLines() | TextFiles():
            path = Path(source.path).expanduser()
            if not path.exists():
                raise ValueError(f"source {source.name}: {str(path)!r} does not exist; correct its path")
            return path.parent if path.is_file() else path
        case PackageFiles() | PackageDocstrings() | PackageJson():
            return package_directory(source.package)


def list_files(source: Source) -> list[str]:
    """The source's files, relative to its root, sorted."""
    root = source_root(source)
    match source:
        case PackageJson():
            return [source.file] if (root / source.file).is_file() else []
        case JsonLines() if Path(source.path).expanduser().is_file():
            return [Path(source.path).name]
        case JsonLines():
            excluded: list[str] = []
        case StandardLibrary():
            excluded = [*INSTALLED, *source.exclude]
        case _:
            excluded = source.exclude
    found = (path.relative_to(root).as_posix() for path in root.glob(source.glob) if path.is_file())
    return sorted(file for file in found if not any(fnmatch(file, pattern) for pattern in excluded))


def file_texts(source: Source, file: str) -> list[str]:
    """The texts of all documents of one file, unfiltered."""
    path = source_root(source) / file
    content = read_utf8(source.name, path)
    match source:
        case PackageJson():
            tree = parse_json(source.name, f"{path}", content)
            objects = list(tree.values()) if isinstance(tree, dict) else tree
            return [join_fields(source, f"{path}, object {number}", item) for number, item in enumerate(objects)]
        case JsonLines():
            lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
            return [
                join_fields(source, f"{path}, line {number}", parse_json(source.name, f"{path}, line {number}", line))
                for number, line in lines
            ]
        case PackageDocstrings():
            return docstrings(content, module_name(source.package, file))
        case _:
            return [content]


def read_utf8(name: str, path: Path) -> str:
    """The text of a file, line ends as they are."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{str(path)!r} is not valid UTF-8 at byte {error.start}"
        raise ValueError(f"source {name}: {where}: convert the file or exclude it") from None


def parse_json(name: str, where: str, content: str) -> Any:
    """One JSON value."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"source {name}: {where} is not valid JSON: {error}") from None


def join_fields(source: PackageJson | JsonLines, where: str, item: Any) -> str:
    """The text fields of one object, joined."""
    fields = item if isinstance(item, dict) else {}
    for field in source.fields:
        if not isinstance(fields.get(field), str):
            present = ", ".join(fields) or "no fields"
            raise ValueError(f"source {source.name}: {where} has no text field {field!r}; it has: {present}")
    return source.separator.join(fields[field] for field in source.fields)


def module_name(package: str, file: str) -> str:
    """`linalg/__init__.py` of package numpy -> `numpy.linalg`."""
    parts = [package, *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(code: str, module: str) -> list[str]:
    """The docstrings of a module, its classes and its functions, each under its full name."""
    found: list[str] = []
    visit_docstrings(ast.parse(code), module, found.append)
    return found


def visit_docstrings(node: Documented, name: str, add: Callable[[str], None]) -> None:
    """Call `add` with the docstring of `node` and of what it defines."""
    text = ast.get_docstring(node)
    if text:
        add(f"{name}\n\n{text}\n")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            visit_docstrings(child, f"{name}.{child.name}", add)
