"""Sources as units of work: what each task reads, and the documents in it that are kept.

A source is planned from its list of files alone: large files that can be divided are, and ranges are grouped, in an order drawn
by the seed, into units of about `unit_bytes`. The plan costs some 500 bytes of memory a file or range, whatever the files
hold; a task holds the text of one unit, so memory does not grow with the corpus. The documents of a unit come in the order of
the SHA-256 of seed, source, file and record, which depends on no directory order, machine path or clock. A source smaller than a
unit is therefore shuffled as a whole; larger ones are shuffled by units and within them, and training permutes all rows again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from wfray.config.cleaning import OnBadInput
from wfray.config.data import Source
from wfray.data.cleaning import Cleaner
from wfray.data.places import Place, find_place, list_files
from wfray.data.records import DAMAGE, FileRange, Record, is_divisible, read_records


@dataclass(frozen=True, slots=True)
class Document:
    """One document that is kept."""

    file: str
    """Relative to the source's root."""
    index: int
    """Its number in the file; see `wfray.data.records`."""
    text: str
    num_bytes: int
    """UTF-8 bytes of its text."""


class Unit(BaseModel):
    """What one task reads."""

    source: Source
    number: int
    """Among the source's units."""
    ranges: list[FileRange]
    num_bytes: int
    """On disk."""
    holds_out: bool = False
    """Whether the source's held-out rows are taken from it."""


def plan_units(source: Source, cache: Path, seed: int, unit_bytes: int) -> list[Unit]:
    """Divide `source` into units, in the order in which they are packed.

    Args:
        source: what to read.
        cache: see `find_place`.
        seed: draws the order.
        unit_bytes: bytes of a unit, but for a file that cannot be divided.

    Raises:
        ValueError: see `list_files`.
    """
    ranges = []
    for file in list_files(source, cache):
        step = unit_bytes if is_divisible(source, file.name) else max(file.num_bytes, 1)
        ends = [*range(step, file.num_bytes, step), None]
        starts = [0, *ends[:-1]]
        for start, stop in zip(starts, ends, strict=True):
            num_bytes = (stop or file.num_bytes) - (start or 0)
            ranges.append((num_bytes, FileRange(file=file.name, start=start or 0, stop=stop, state=file.state)))
    if sum(num_bytes for num_bytes, _ in ranges) > unit_bytes:
        ranges.sort(key=lambda item: draw(seed, source.name, item[1].file, item[1].start))
    return group(source, ranges, unit_bytes)


def group(source: Source, ranges: list[tuple[int, FileRange]], unit_bytes: int) -> list[Unit]:
    """Consecutive ranges, of which one more would exceed `unit_bytes`, become a unit."""
    units: list[Unit] = []
    for num_bytes, part in ranges:
        if not units or units[-1].num_bytes + num_bytes > unit_bytes:
            units.append(Unit(source=source, number=len(units), ranges=[], num_bytes=0))
        units[-1].ranges.append(part)
        units[-1].num_bytes += num_bytes
    return units


def read_unit(unit: Unit, cache: Path, on_bad_input: OnBadInput, cleaner: Cleaner) -> Iterator[Document]:
    """The documents of `unit` that are kept, in the order of its files; `cleaner` counts what is left out.

    Raises:
        ValueError: bad input under `raise`: a damaged file, an unreadable document; the message names it.
    """
    place = find_place(unit.source, cache)
    for part in unit.ranges:
        for number, make in whole_records(unit.source, place, part, on_bad_input, cleaner):
            name = f"{part.file}#{number}"
            try:
                text = make()
                content = (text or "").encode()
            except ValueError as error:
                if on_bad_input == "raise":
                    raise ValueError(f"source {unit.source.name}: {place.path(part.file)}{error}") from None
                cleaner.remove("unreadable", name)
                continue
            if text is None:
                cleaner.remove("filtered", name)
            elif cleaner.keeps(text, name):
                yield Document(part.file, number, text, len(content))


def whole_records(source: Source, place: Place, part: FileRange, on_bad_input: OnBadInput, cleaner: Cleaner) -> Iterator[Record]:
    """The records of a file or range, up to where it is damaged if it is."""
    try:
        yield from read_records(source, place, part)
    except (*DAMAGE, OSError) as error:
        if not isinstance(error, DAMAGE) and (type(error) is not OSError or error.errno is not None):
            raise
        if on_bad_input == "raise":
            raise ValueError(
                f"source {source.name}: {place.path(part.file)} is truncated or damaged ({type(error).__name__}: {error}): replace or "
                "exclude it, or set on_bad_input: skip"
            ) from None
        cleaner.remove("damaged_file", part.file)


def shuffled(source: Source, documents: Iterable[Document], seed: int) -> list[Document]:
    """Documents in the order of `seed`."""
    return sorted(documents, key=lambda document: document_key(source.name, document, seed))


def document_key(name: str, document: Document, seed: int) -> bytes:
    """A number drawn for one document."""
    return draw(seed, name, document.file, document.index)


def draw(seed: int, name: str, file: str, index: int) -> bytes:
    """32 random bytes that depend on nothing but the arguments."""
    return hashlib.sha256(f"{seed}\0{name}\0{file}\0{index}".encode()).digest()
