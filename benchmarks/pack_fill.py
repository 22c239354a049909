"""How full rows are, and that nothing is cut that would have fitted: best-fit packing of the offline mix at S = 512 and 2,048.

All documents of the mix are encoded once and packed shard by shard as `jobs.pack` packs them. What is counted is counted in the packed
arrays: the fill is the share of positions that belong to a document; a piece that does not end with the end-of-text token was
cut, and one that is shorter than a row was cut although its document would have fitted. Concatenation is the peer. Downloads
what is not in the cache.
"""

import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.harness import report
from wfray.config.data import PackConfig, Source
from wfray.data.build import split_parts
from wfray.data.cleaning import Cleaner
from wfray.data.encoding import Encoder
from wfray.data.options import BYTES_PER_TOKEN
from wfray.data.packages import fetch
from wfray.data.packing import PackedRows, concatenate, pack
from wfray.data.sources import plan_units, read_unit, shuffled
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import resolve_home

CONFIG = Path(__file__).parents[1] / "configs" / "pack" / "offline.yaml"
SEQUENCE_LENGTHS = (512, 2048)
Counts = dict[str, Counter[str]]


def main(*names: str) -> None:
    config = PackConfig.load(CONFIG)
    cache = resolve_home(config.cache)
    fetch(config.all_sources, cache)
    tokenizer = cache / "tokenizer"
    end_id = save_tokenizer(config.tokenizer, tokenizer).document_end_id
    sources = [source for source in config.sources if not names or source.name in names]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = {source.name: pool.submit(pack_source, source, config, cache, tokenizer, end_id) for source in sources}
        counts = {name: future.result() for name, future in futures.items()}
    totals = {key: sum((count[key] for count in counts.values()), Counter()) for key in next(iter(counts.values()))}
    detail: dict[str, Any] = {key: figures(total) for key, total in totals.items()}
    detail["by source"] = {name: {key: figures(count)["fill"] for key, count in each.items()} for name, each in counts.items()}
    fitted = [detail[f"best_fit {length}"] for length in SEQUENCE_LENGTHS]
    # A single document cut without need makes the whole figure void.
    value = 0.0 if any(figure["cut_that_fitted"] for figure in fitted) else min(figure["fill"] for figure in fitted)
    peers = {key: detail.pop(key) for key in list(detail) if key.startswith("concatenate")}
    report("pack_fill", value, "of positions hold text", goal=0.995, better="higher", peers=peers, detail=detail)


def pack_source(source: Source, config: PackConfig, cache: Path, tokenizer: Path, end_id: int) -> Counts:
    """What packing one source gives, by method and sequence length."""
    encoder = Encoder(tokenizer / "tokenizer.json", end_id)
    counts: Counts = {f"{method} {length}": Counter() for method in ("best_fit", "concatenate") for length in SEQUENCE_LENGTHS}
    for unit in plan_units(source, cache, config.seed, config.megabytes_per_task * 2**20):
        documents = shuffled(source, read_unit(unit, cache, "raise", Cleaner(source, None)), config.seed)
        tokens = dict(zip(map(id, documents), encoder.encode([document.text for document in documents]), strict=True))
        for length in SEQUENCE_LENGTHS:
            for part in split_parts(documents, config.rows_per_shard * length * BYTES_PER_TOKEN):
                arrays = [tokens[id(document)] for document in part]
                counts[f"best_fit {length}"] += count(pack(arrays, length, end_id), end_id, arrays)
                counts[f"concatenate {length}"] += count(concatenate(arrays, length, end_id), end_id, arrays)
    return counts


def count(rows: PackedRows, end_id: int, documents: list[NDArray[np.int32]]) -> Counter[str]:
    """Positions, text, documents and cuts, from the arrays."""
    length = rows.input_ids.shape[1]
    lasts = np.ones(rows.segment_ids.shape, dtype=bool)
    lasts[:, :-1] = rows.segment_ids[:, 1:] != rows.segment_ids[:, :-1]
    lasts &= rows.segment_ids > 0
    cut = lasts & (rows.input_ids != end_id)
    row, column = np.nonzero(cut)
    whole_rows = (column == length - 1) & (rows.segment_ids[row, 0] == rows.segment_ids[row, column])
    num_text = int(np.count_nonzero(rows.segment_ids))
    assert num_text == sum(map(len, documents)), "packing lost tokens"
    return Counter(
        {
            "positions": rows.input_ids.size,
            "text": num_text,
            "documents": len(documents),
            "documents_longer_than_a_row": sum(len(document) > length for document in documents),
            "cut_that_fitted": int((~whole_rows).sum()),
        }
    )


def figures(total: Counter[str]) -> dict[str, Any]:
    """Counts with the fill."""
    return {**total, "cut_that_fitted": total["cut_that_fitted"], "fill": round(total["text"] / total["positions"], 5)}


if __name__ == "__main__":
    main(*sys.argv[1:])
