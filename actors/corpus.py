"""The corpus maker: Ray Data reads, cleans, tokenizes, packs and writes; order and names come from `wfray.data`.

The driver lists files and divides sources into units; one task a unit packs its shards, all sources in one pipeline; a source whose
units fell short of its `max_tokens` gets further units in another round. Where duplicates or evaluation sets are looked for, a
pass over the units comes first. A task is stateless and asks for half a CPU, so a reserved teacher does not starve it; it returns
records of a few hundred bytes: rows go to the file system, never through the object store. Results are taken in order whatever
the scheduling. A job that died left receipts and whole shards behind; they are found by name and not made again.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import ray
from pydantic import BaseModel, TypeAdapter

from actors.placement import resources_of
from wfray.config.cleaning import Duplicates
from wfray.config.data import JsonLines, PackConfig, Parquet, RowSource, Source, TextFiles
from wfray.data.build import UnitResult, count_needed, open_cleaner, pack_unit, units_wanted, up_to
from wfray.data.cleaning import Cleaner, write_runs
from wfray.data.duplicates import find_duplicates, fingerprints
from wfray.data.encoding import DocumentEncoder, Encoder, TokenizerFacts
from wfray.data.options import PackOptions
from wfray.data.removed import merge_removed
from wfray.data.shards import INDEX, CorpusIndex, SourceIndex, Split, SplitIndex, write_index
from wfray.data.sources import Unit, plan_units, read_unit
from wfray.runs import resolve_home, sha256_of, write_aside

NUM_CPUS = 0.5
"""Of one task."""
Report = Callable[[float, str], None]
Plan = dict[str, list[Unit]]


def pack_corpus(config: PackConfig, tokenizer: TokenizerFacts, directory: Path, report: Report) -> CorpusIndex:
    """Make the corpus of `config` in `directory`, which every node sees; the index is written last.

    Args:
        config: what to pack.
        tokenizer: what `save_tokenizer` returned for `directory / "tokenizer"`.
        directory: the corpus directory; whole shards that it already holds are kept.
        report: called with the progress (0 to 1) and one line.

    Raises:
        ValueError: a source is missing, unreadable or too small; the message names it and the mend.
    """
    (directory / INDEX).unlink(missing_ok=True)
    options = pack_options(config, tokenizer, directory)
    report(0.1, f"listing {len(config.sources)} sources")
    plan = {source.name: plan_units(absolute(source), Path(options.cache), config.seed, options.unit_bytes) for source in config.sources}
    report(0.15, f"{sum(len(units) for units in plan.values())} units")
    options = note_evaluations(config, options)
    note_duplicates(config, plan, options, report)
    results = pack_units(config, plan, options, report)
    sources = [index_source(source, results[source.name]) for source in config.sources]
    index = CorpusIndex(**tokenizer.model_dump(), sequence_length=config.sequence_length, sources=sources)
    write_index(directory, index)
    return index


def pack_options(config: PackConfig, tokenizer: TokenizerFacts, directory: Path) -> PackOptions:
    """What every task is told."""
    return PackOptions(
        corpus=str(directory),
        cache=str(resolve_home(config.cache)),
        tokenizer=tokenizer,
        sequence_length=config.sequence_length,
        rows_per_shard=config.rows_per_shard,
        heldout_rows=config.heldout_rows,
        seed=config.seed,
        packing=config.packing,
        unit_bytes=config.megabytes_per_task * 2**20,
        on_bad_input=config.on_bad_input,
        evaluation_words=config.decontamination.num_words if config.decontamination else None,
        duplicates=config.duplicates is not None,
        config_sha256=config.digest(),
    )


def absolute(source: Source) -> Source:
    """A source whose path, if it is local, is good in every process."""
    if isinstance(source, JsonLines | Parquet | TextFiles) and "://" not in source.path:
        return source.model_copy(update={"path": str(resolve_home(source.path))})
    return source


def index_source(source: Source, results: list[UnitResult]) -> SourceIndex:
    """The index entry of one source."""
    train = up_to([shard for result in results for shard in result.train], source.max_tokens)
    heldout = [result.heldout for result in results if result.heldout]
    splits: dict[Split, SplitIndex] = {"train": SplitIndex(shards=train), "heldout": SplitIndex(shards=heldout)}
    removed = merge_removed(result.removed for result in results)
    return SourceIndex(name=source.name, kind=source.kind, licence=source.licence, weight=source.weight, splits=splits, removed=removed)


def note_evaluations(config: PackConfig, options: PackOptions) -> PackOptions:
    """Write the word runs of the evaluation sets, if any are to be kept out; the options with what they are."""
    if config.decontamination is None:
        return options
    sources = TypeAdapter(list[Source]).dump_json([absolute(source) for source in config.decontamination.evaluations]).decode()
    list(run_tasks("evaluations", [sources], options))
    return options.model_copy(update={"evaluations_sha256": sha256_of(options.evaluation_runs)})


def note_duplicates(config: PackConfig, plan: Plan, options: PackOptions, report: Report) -> None:
    """Write a mask of the duplicates of every unit, if any are to be left out."""
    if config.duplicates is None:
        return
    units = [unit for source in config.sources for unit in plan[source.name]]
    items = [Fingerprinting(unit=unit, duplicates=config.duplicates).model_dump_json() for unit in units]
    for number, _ in enumerate(run_tasks("fingerprints", items, options), start=1):
        report(0.15 + 0.15 * number / len(units), f"duplicates: unit {number} of {len(units)}")
    prints = [np.load(options.fingerprints(unit), mmap_mode="r") for unit in units]
    for unit, mask in zip(units, find_duplicates(prints, config.duplicates), strict=True):
        with write_aside(options.mask(unit)) as aside, aside.open("wb") as file:
            np.save(file, mask)


def pack_units(config: PackConfig, plan: Plan, options: PackOptions, report: Report) -> dict[str, list[UnitResult]]:
    """What became of the units of each source, in order, by name."""
    results: dict[str, list[UnitResult]] = {source.name: [] for source in config.sources}

    def wanted() -> list[Unit]:
        return [unit for source in config.sources for unit in units_wanted(plan[source.name], results[source.name], options)]

    total = sum(count_needed(units) for units in plan.values())
    while batch := wanted():
        packed = run_tasks("pack", [unit.model_dump_json() for unit in batch], options)
        for unit, result in zip(batch, packed, strict=True):
            results[unit.source.name].append(UnitResult.model_validate_json(result))
            done = sum(map(len, results.values()))
            report(0.3 + 0.7 * min(done / total, 1), f"{unit.source.name}: unit {unit.number}, {done} of about {total}")
    return results


Work = Literal["evaluations", "fingerprints", "pack"]


class Fingerprinting(BaseModel):
    """The work of one fingerprinting task."""

    unit: Unit
    duplicates: Duplicates


def run_tasks(work: Work, items: list[str], options: PackOptions) -> Iterator[str]:
    """Run one Ray task an item; yield the results in the order of the items, as they come."""
    rows = [{"work": work, "item": item, "options": options.model_dump_json()} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run_task, num_cpus=NUM_CPUS, resources=resources_of("data"))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield row["result"]


def run_task(row: dict[str, str]) -> dict[str, str]:
    """One unit of work on a worker. A user's mistake travels as data: Ray Data would bury its message in tracebacks."""
    options = PackOptions.model_validate_json(row["options"])
    work = {"evaluations": write_evaluation_runs, "fingerprints": write_fingerprints, "pack": pack}[row["work"]]
    try:
        return {"result": work(row["item"], options), "error": ""}
    except ValueError as error:
        return {"result": "", "error": str(error)}


def write_evaluation_runs(item: str, options: PackOptions) -> str:
    """Write the word runs of all texts of the evaluation sets."""
    sources = TypeAdapter(list[Source]).validate_json(item)
    texts = (
        document.text
        for source in sources
        for unit in plan_units(source, Path(options.cache), options.seed, options.unit_bytes)
        for document in read_unit(unit, Path(options.cache), "raise", Cleaner(source, None))
    )
    assert options.evaluation_words is not None
    with write_aside(options.evaluation_runs) as aside:
        return str(write_runs(aside, texts, options.evaluation_words))


def write_fingerprints(item: str, options: PackOptions) -> str:
    """Write the fingerprints of a unit's documents."""
    work = Fingerprinting.model_validate_json(item)
    if options.fingerprints(work.unit).exists():
        return ""
    documents = read_unit(work.unit, Path(options.cache), options.on_bad_input, open_cleaner(work.unit, options))
    with write_aside(options.fingerprints(work.unit)) as aside, aside.open("wb") as file:
        np.save(file, fingerprints((document.text for document in documents), work.duplicates))
    return ""


def pack(item: str, options: PackOptions) -> str:
    """Pack a unit."""
    unit = Unit.model_validate_json(item)
    is_chat = isinstance(unit.source, RowSource) and unit.source.chat is not None
    encoder: DocumentEncoder = (
        open_chat_encoder(options.tokenizer_json.parent)
        if is_chat
        else open_encoder(options.tokenizer_json, options.tokenizer.document_end_id)
    )
    return pack_unit(unit, options, encoder).model_dump_json()


@cache
def open_chat_encoder(tokenizer: Path) -> DocumentEncoder:
    """The encoder of conversations of this worker process; only it needs transformers."""
    from wfray.data.chat_encoding import ChatEncoder

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return ChatEncoder(tokenizer)


@cache
def open_encoder(tokenizer_json: Path, end_id: int) -> Encoder:
    """The encoder of this worker process, which encodes on one thread: the tasks are the parallelism."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Encoder(tokenizer_json, end_id)
