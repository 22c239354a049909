"""The documents of one file, or of one range of its bytes, in the order of the file.

A large `.jsonl` or `.parquet` file is read in ranges, by several tasks, without an index: a range owns the lines, or the row
groups, that begin in it. A compressed file is one stream and is read by one task. Whatever its form, a record has a number
that depends on the file alone (line offset, row, position), so a document is the same however its file is divided.
"""

import ast
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports.zstd import ZstdError
from pydantic import BaseModel

from wfray.config.chat import Chat
from wfray.config.cleaning import Condition
from wfray.config.data import JsonLines, PackageDocstrings, PackageJson, Parquet, RowSource, Source
from wfray.data.conversations import conversation_of
from wfray.data.places import Place

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bz2"}
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, LZMAError, ZstdError, pa.ArrowInvalid)
"""What the readers raise on a truncated or damaged file."""
Record = tuple[int, Callable[[], str | None]]
"""A number, and what gives the text: None where a filter leaves the row out; where it cannot be read, `ValueError` with words that
follow the name of the file."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class FileRange(BaseModel):
    """A file, or bytes `start:stop` of it."""

    file: str
    """Relative to the source's root."""
    start: int = 0
    stop: int | None = None
    """None is the end of the file."""
    state: str = ""
    """See `SourceFile.state`."""


def read_records(source: Source, place: Place, part: FileRange) -> Iterator[Record]:
    """The records of a file or range.

    Raises:
        OSError, or one of `DAMAGE`: the file cannot be read or is damaged, after the records before the damage.
    """
    match form_of(source, part.file):
        case "parquet":
            return parquet_records(source, place, part)
        case "jsonl":
            return line_records(source, place, part)
        case "json":
            return json_records(source, place, part)
        case "docstrings":
            return docstring_records(source, place, part)
        case _:
            return iter([(0, partial(decode, read_whole(place, part.file)))])


def form_of(source: Source, file: str) -> str:
    """How a file is read: by the kind of its source or, for mixed kinds, its suffix."""
    match source:
        case PackageDocstrings():
            return "docstrings"
        case JsonLines():
            return "jsonl"
        case PackageJson():
            return "json"
        case Parquet():
            return "parquet"
        case RowSource():
            path = PurePosixPath(file)
            suffix = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
            return suffix.removeprefix(".") if suffix in (".parquet", ".jsonl", ".json") else "text"
        case _:
            return "text"


def is_divisible(source: Source, file: str) -> bool:
    """Whether ranges of a file can be read on their own."""
    form = form_of(source, file)
    return form == "parquet" or (form == "jsonl" and compression_of(file) is None)


def compression_of(file: str) -> str | None:
    """fsspec's name of a file's compression."""
    return COMPRESSIONS.get(PurePosixPath(file).suffix)


def open_file(place: Place, file: str) -> IO[bytes]:
    """A file opened for reading, decompressed."""
    return place.filesystem.open(place.path(file), "rb", compression=compression_of(file))


def read_whole(place: Place, file: str) -> bytes:
    """The content of a file, decompressed."""
    with open_file(place, file) as content:
        return content.read()


def line_records(source: Source, place: Place, part: FileRange) -> Iterator[Record]:
    """Lines of JSON that begin in the range; the number is the offset of the line."""
    assert isinstance(source, RowSource)
    with open_file(place, part.file) as content:
        offset = part.start
        if offset:
            content.seek(offset - 1)
            offset += len(content.readline()) - 1
        for number in itertools.count(1):
            line = content.readline() if part.stop is None or offset < part.stop else b""
            if not line:
                return
            where = f", line {number}" if part.start == 0 else f", the line at byte {offset}"
            if line.strip():
                yield offset, partial(line_text, source, where, line)
            offset += len(line)


def line_text(source: RowSource, where: str, line: bytes) -> str | None:
    """The text of one JSON line."""
    return row_text(source, where, parse_json(decode(line, where), where))


def json_records(source: Source, place: Place, part: FileRange) -> Iterator[Record]:
    """The objects of a JSON list or mapping; the number is the position."""
    assert isinstance(source, RowSource)
    try:
        objects = list_objects(parse_json(decode(read_whole(place, part.file))))
    except ValueError as error:
        yield 0, partial(refuse, str(error))
        return
    for number, item in enumerate(objects):
        yield number, partial(row_text, source, f", object {number}", item)


def list_objects(tree: Any) -> list[Any]:
    """The items of a JSON list, or the values of a JSON mapping."""
    if not isinstance(tree, list | dict):
        raise ValueError(f" holds one {type(tree).__name__}, neither a list nor a mapping of objects")
    return list(tree.values()) if isinstance(tree, dict) else tree


def parquet_records(source: Source, place: Place, part: FileRange) -> Iterator[Record]:
    """Rows of the row groups that begin in the range; the number is the row's in the file."""
    assert isinstance(source, RowSource)
    fields = source.chat.fields if source.chat else source.fields
    columns = list(dict.fromkeys([*fields, *(condition.field for condition in source.filters)]))
    with place.filesystem.open(place.path(part.file), "rb") as content, pq.ParquetFile(content) as table:
        missing = [name for name in columns if name not in table.schema_arrow.names]
        if missing:
            yield 0, partial(refuse, f" has no column {', '.join(missing)}; it has: {', '.join(table.schema_arrow.names)}")
            return
        row = 0
        for group in range(table.num_row_groups):
            metadata = table.metadata.row_group(group)
            if part.start <= row_group_offset(metadata) and (part.stop is None or row_group_offset(metadata) < part.stop):
                number = row
                for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                    for index in range(len(batch)):
                        yield number, partial(batch_text, source, batch, index, f", row {number}")
                        number += 1
            row += metadata.num_rows


def row_group_offset(metadata: Any) -> int:
    """Where a row group begins in its file."""
    column = metadata.column(0)
    return min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)


def batch_text(source: RowSource, batch: pa.RecordBatch, index: int, where: str) -> str | None:
    """The text of one row of a Parquet batch."""
    return row_text(source, where, {name: batch.column(name)[index].as_py() for name in batch.schema.names})


def row_text(source: RowSource, where: str, row: Any) -> str | None:
    """The text fields of one row, joined, or the row's conversation as a document; None where a filter leaves it out."""
    fields = row if isinstance(row, dict) else {}
    if not all(satisfies(fields, condition, where) for condition in source.filters):
        return None
    if source.chat:
        return conversation_text(source.chat, where, fields)
    for field in source.fields:
        if not isinstance(fields.get(field), str):
            raise ValueError(f"{where} has no text field {field!r}; it has: {', '.join(fields) or 'no fields'}")
    return source.separator.join(fields[field] for field in source.fields)


def conversation_text(chat: Chat, where: str, fields: dict[str, Any]) -> str | None:
    """The conversation in one row, as a document; None where nothing in it is to be learned."""
    try:
        conversation = conversation_of(chat, fields)
        return conversation.to_text() if conversation else None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def satisfies(fields: dict[str, Any], condition: Condition, where: str) -> bool:
    """Whether a row satisfies a filter."""
    if condition.field not in fields:
        raise ValueError(f"{where} has no field {condition.field!r} to filter by; it has: {', '.join(fields) or 'no fields'}")
    value = fields[condition.field]
    if condition.one_of is not None and value not in condition.one_of:
        return False
    if condition.at_least is None and condition.at_most is None:
        return True
    if not isinstance(value, int | float):
        raise ValueError(f"{where}: field {condition.field!r} is no number, so at_least and at_most do not apply")
    return (condition.at_least is None or value >= condition.at_least) and (condition.at_most is None or value <= condition.at_most)


def docstring_records(source: Source, place: Place, part: FileRange) -> Iterator[Record]:
    """The docstrings of a module, its classes and its functions, each under its full name; the number is the position."""
    assert isinstance(source, PackageDocstrings)
    try:
        tree = ast.parse(decode(read_whole(place, part.file)))
    except (SyntaxError, ValueError) as error:
        yield 0, partial(refuse, f" is not valid Python: {error}")
        return
    for number, text in enumerate(docstrings(tree, module_name(source.package, part.file))):
        yield number, partial(str, text)


def docstrings(node: Documented, name: str) -> Iterator[str]:
    """The docstring of `node` and of what it defines."""
    text = ast.get_docstring(node)
    if text:
        yield f"{name}\n\n{text}\n"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")


def module_name(package: str, file: str) -> str:
    """`linalg/__init__.py` of package numpy -> `numpy.linalg`."""
    parts = [package, *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def decode(content: bytes, where: str = "") -> str:
    """UTF-8 to text, line ends as they are; a byte-order mark is dropped."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not valid UTF-8 at byte {error.start}: convert the file or exclude it") from None


def parse_json(content: str, where: str = "") -> Any:
    """One JSON value."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None


def refuse(message: str) -> str:
    """A record that cannot be read."""
    raise ValueError(message)
