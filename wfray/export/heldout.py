"""Held-out documents of a packed corpus, cut to length, from all sources in turn."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wfray.data.corpus import PackedCorpus

MIN_TOKENS = 16


def heldout_sequences(corpus: Path, num: int, max_tokens: int) -> list[list[int]]:
    """The token ids of `num` documents.

    Args:
        corpus: a corpus directory.
        num: how many are wanted.
        max_tokens: longer documents are cut.

    Raises:
        ValueError: it is no packed corpus, or its held-out splits have fewer documents of at least 16 tokens.
    """
    packed = PackedCorpus(corpus)
    documents = [documents_of(packed, source, max_tokens) for source in packed.source_names]
    in_turn = (document for turn in itertools.zip_longest(*documents) for document in turn if document is not None)
    sequences = list(itertools.islice(in_turn, num))
    if len(sequences) < num:
        raise ValueError(
            f"{str(corpus)!r} holds {len(sequences)} held-out documents of {MIN_TOKENS} tokens or more, and parity.sequences wants {num}: "
            "pack more heldout_rows, or set parity.sequences"
        )
    return sequences


def documents_of(corpus: PackedCorpus, source: str, max_tokens: int) -> Iterator[list[int]]:
    """The held-out documents of one source, row by row."""
    for number in range(corpus.split(source, "heldout").num_rows):
        rows = corpus.read_rows(source, "heldout", [number])
        input_ids_1S, segment_ids_1S = rows.input_ids, rows.segment_ids
        for segment in range(1, segment_ids_1S.max() + 1):
            document = input_ids_1S[0, np.flatnonzero(segment_ids_1S[0] == segment)[:max_tokens]]
            if len(document) >= MIN_TOKENS:
                yield document.tolist()
