"""The corpus maker: Ray Data reads, tokenizes, packs and writes; order and names come from `wfray.data`.

One task a source lists its documents and packs its held-out rows, then one task a part packs one shard, all sources in one
pipeline; a source whose shards fell short of its `max_tokens` gets further parts in another round. A task is stateless and
asks for half a CPU, so a reserved teacher does not starve it; it returns a record of a few hundred bytes: rows go to the file
system, never through the object store. Results are taken in order whatever the scheduling. A job that died left whole shards
behind; they are found by name and not made again.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import ray
from pydantic import BaseModel, TypeAdapter

from wfray.config.data import PackConfig, Source
from wfray.data.build import PackOptions, Part, Survey, pack_part, parts_wanted, split_parts, survey, up_to
from wfray.data.encoding import Encoder, TokenizerFacts
from wfray.data.shards import INDEX, CorpusIndex, ShardRecord, SourceIndex, Split, SplitIndex, write_index

NUM_CPUS = 0.5
"""Of one task."""
Report = Callable[[float, str], None]


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
    options = PackOptions(
        corpus=str(directory),
        tokenizer=tokenizer,
        sequence_length=config.sequence_length,
        rows_per_shard=config.rows_per_shard,
        heldout_rows=config.heldout_rows,
        seed=config.seed,
    )
    report(0.1, f"reading {len(config.sources)} sources")
    surveys = survey_sources(config, options)
    report(0.3, "packing")
    shards = pack_sources(config, surveys, options, report)
    sources = [index_source(source, shards[source.name], surveys[source.name].heldout) for source in config.sources]
    index = CorpusIndex(**tokenizer.model_dump(), sequence_length=config.sequence_length, sources=sources)
    write_index(directory, index)
    return index


def index_source(source: Source, train: list[ShardRecord], heldout: ShardRecord) -> SourceIndex:
    """The index entry of one source."""
    splits: dict[Split, SplitIndex] = {"train": SplitIndex(shards=train), "heldout": SplitIndex(shards=[heldout])}
    return SourceIndex(name=source.name, kind=source.kind, licence=source.licence, weight=source.weight, splits=splits)


def survey_sources(config: PackConfig, options: PackOptions) -> dict[str, Survey]:
    """What each source holds, by name."""
    results = run_tasks("survey", [source.model_dump_json() for source in config.sources], options)
    return {source.name: Survey.model_validate_json(result) for source, result in zip(config.sources, results, strict=True)}


def pack_sources(config: PackConfig, surveys: dict[str, Survey], options: PackOptions, report: Report) -> dict[str, list[ShardRecord]]:
    """The training shards of each source, in order, by name."""
    parts = {source.name: split_parts(source, surveys[source.name].documents, options) for source in config.sources}
    shards: dict[str, list[ShardRecord]] = {source.name: [] for source in config.sources}

    def wanted() -> list[Part]:
        each = (parts_wanted(source, parts[source.name], shards[source.name], options) for source in config.sources)
        return [part for wanted_of_source in each for part in wanted_of_source]

    while batch := wanted():
        results = run_tasks("pack", [part.model_dump_json() for part in batch], options)
        for number, (part, result) in enumerate(zip(batch, results, strict=True), start=1):
            shards[part.source.name].append(ShardRecord.model_validate_json(result))
            report(0.3 + 0.7 * number / len(batch), f"{part.source.name}: shard {number} of {len(batch)}")
    return {source.name: up_to(shards[source.name], source.max_tokens) for source in config.sources}


def run_tasks(work: Literal["survey", "pack"], items: list[str], options: PackOptions) -> Iterator[str]:
    """Run one Ray task an item; yield the results in the order of the items, as they come."""
    rows = [{"work": work, "item": item, "options": options.model_dump_json()} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run_task, num_cpus=NUM_CPUS)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield row["result"]


def run_task(row: dict[str, str]) -> dict[str, str]:
    """One unit of work on a worker. A user's mistake travels as data: Ray Data would bury its message in tracebacks."""
    options = PackOptions.model_validate_json(row["options"])
    encoder = open_encoder(options.tokenizer_json, options.tokenizer.document_end_id)
    try:
        if row["work"] == "survey":
            result: BaseModel = survey(TypeAdapter[Source](Source).validate_json(row["item"]), options, encoder)
        else:
            result = pack_part(Part.model_validate_json(row["item"]), options, encoder)
    except ValueError as error:
        return {"result": "", "error": str(error)}
    return {"result": result.model_dump_json(), "error": ""}


@cache
def open_encoder(tokenizer_json: Path, end_id: int) -> Encoder:
    """The encoder of this worker process."""
    return Encoder(tokenizer_json, end_id)
