"""`python -m jobs.pack --config configs/pack/quickstart.yaml`: text sources -> packed token shards.

fetch (on fetch=true) ─► connect ─► tokenizer ─► list ─► read, clean, hold out, tokenize + pack, one unit a task ─► index ─► manifest
"""

import time
from typing import Any

from actors.connection import connect
from actors.corpus import pack_corpus
from jobs.cli import run_job
from wfray.config.data import PackConfig
from wfray.data.packages import fetch
from wfray.data.shards import CorpusIndex
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import Stage, resolve_home


def main(config: PackConfig) -> None:
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done")
        return
    if config.fetch:
        for directory in fetch(config.all_sources, resolve_home(config.cache)):
            print(f"fetched {directory}")
    connect()
    directory = stage.directory / "corpus"
    with stage, stage.metrics() as metrics:

        def report(progress: float, message: str) -> None:
            metrics.write(progress=round(progress, 3), message=message)

        began = time.perf_counter()
        report(0.0, "loading the tokenizer")
        tokenizer = save_tokenizer(config.tokenizer, directory / "tokenizer")
        index = pack_corpus(config, tokenizer, directory, report)
        stage.figures = figures_of(index, time.perf_counter() - began)
        for shortage in shortages(config, index):
            report(0.99, shortage)
            print(shortage)
        stage.add_output(directory)
        report(1.0, "packed")
    print_table(stage.figures)


def figures_of(index: CorpusIndex, seconds: float) -> dict[str, Any]:
    """What was packed, per source and split; a token is a position of a packed row, a text token one that is not padding."""
    sources = {
        source.name: {
            "licence": source.licence,
            "weight": source.weight,
            "removed": {reason: removed.model_dump() for reason, removed in source.removed.items()},
            **{
                name: {
                    "documents": split.num_documents,
                    "cut_documents": split.num_cut_documents,
                    "rows": split.num_rows,
                    "tokens": split.num_tokens,
                    "padding": split.num_tokens - split.num_text_tokens,
                    "fill": round(split.fill, 5),
                }
                for name, split in source.splits.items()
            },
        }
        for source in index.sources
    }
    tokens = sum(split.num_tokens for source in index.sources for split in source.splits.values())
    return {"sources": sources, "tokens": tokens, "seconds": round(seconds, 2)}


def shortages(config: PackConfig, index: CorpusIndex) -> list[str]:
    """One line for each source that ended before its `max_tokens`."""
    packed = {source.name: source.splits["train"].num_tokens for source in index.sources}
    return [
        f"{source.name}: ended after {packed[source.name]} of {source.max_tokens} tokens; its epochs are shorter"
        for source in config.sources
        if source.max_tokens is not None and packed[source.name] < source.max_tokens
    ]


def print_table(figures: dict[str, Any]) -> None:
    """One line per source and split."""
    line = "{:<16} {:<8} {:>9} {:>6} {:>7} {:>10} {:>8} {:>7}  {}"
    print(line.format("source", "split", "documents", "cut", "rows", "tokens", "padding", "fill", "licence"))
    for name, source in figures["sources"].items():
        for split in ("train", "heldout"):
            row = source[split]
            counts = [row["documents"], row["cut_documents"], row["rows"], row["tokens"], row["padding"], f"{row['fill']:.2%}"]
            print(line.format(name, split, *counts, source["licence"]))
    for name, source in figures["sources"].items():
        for reason, removed in source["removed"].items():
            print(f"{name}: left out {removed['documents']} {reason} ({removed['characters']} characters), first {removed['examples'][0]}")
    print(f"{figures['tokens']} tokens packed in {figures['seconds']} s")


if __name__ == "__main__":
    run_job(PackConfig, main)
