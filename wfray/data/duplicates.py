"""De-duplication over all sources: fingerprints by unit, one decision over all fingerprints, a mask for each unit.

Exact: a fingerprint is 128 bits of the text's hash. Near: it is a MinHash signature (datasketch) of the set of word n-grams;
signatures are compared where they agree in one whole band of b bands of r numbers, b and r being the library's optimum for the
threshold, and a document goes when the first document of such a meeting agrees with it in at least `threshold` of all numbers
(Broder 1997; Indyk and Motwani 1998). Texts of equal words are always found, similar ones with the probability of that scheme:
at threshold 0.8 with 128 numbers, about 0.98 at similarity 0.9.

Of documents that are the same the first is kept, in the order of sources and units, which no scheduling changes. The process that
decides maps the signatures from disk and holds one number a document and band: some 40 bytes a document, at the moment.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from wfray.config.cleaning import Duplicates, ExactDuplicates, NearDuplicates

WORD = re.compile(r"\w+")
SHINGLES_AT_ONCE = 4096
"""Of a document hashed together, so that an enormous one needs no enormous matrix."""


def fingerprints(texts: Iterable[str], options: Duplicates) -> NDArray[np.uint32]:
    """A row for each text: uint32 [N, 4], or [N, num_permutations] for near duplicates."""
    match options:
        case ExactDuplicates():
            rows = [np.frombuffer(xxhash.xxh3_128_digest(text.encode()), dtype=np.uint32) for text in texts]
            width = 4
        case NearDuplicates():
            rows = [signature(text, options) for text in texts]
            width = options.num_permutations
    return np.stack(rows) if rows else np.empty((0, width), dtype=np.uint32)


def signature(text: str, options: NearDuplicates) -> NDArray[np.uint32]:
    """The MinHash of a text's set of word n-grams; a text of fewer words is one n-gram."""
    minhash = blank(options.num_permutations).copy()
    batch: list[bytes] = []
    for shingle in shingles(text, options.shingle_words):
        batch.append(shingle)
        if len(batch) == SHINGLES_AT_ONCE:
            minhash.update_batch(batch)
            batch = []
    if batch:
        minhash.update_batch(batch)
    return np.asarray(minhash.hashvalues, dtype=np.uint32)


def shingles(text: str, num_words: int) -> Iterator[bytes]:
    """The word n-grams of a text in lower case, without punctuation."""
    window: list[str] = []
    whole = False
    for word in WORD.finditer(text.lower()):
        window.append(word.group())
        if len(window) == num_words:
            yield " ".join(window).encode("utf-8", "surrogatepass")
            window.pop(0)
            whole = True
    if not whole:
        yield " ".join(window).encode("utf-8", "surrogatepass") or text.encode("utf-8", "surrogatepass")


@cache
def blank(num_permutations: int) -> MinHash:
    """A signature of nothing, whose permutations are drawn once."""
    return MinHash(num_perm=num_permutations, seed=1, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")


def find_duplicates(units: list[NDArray[np.uint32]], options: Duplicates) -> list[NDArray[np.bool_]]:
    """For each unit's fingerprints, in order, which documents are left out: bool [N] each."""
    starts = np.cumsum([0, *(len(unit) for unit in units)])
    removed = np.zeros(starts[-1], dtype=bool)
    for first, last in bands(options):
        keys = np.concatenate([np.empty(0, np.uint64), *(band_keys(unit[:, first:last]) for unit in units)])
        for kept, found in meetings(keys):
            if not removed[found]:
                removed[found] = same(fingerprint(units, starts, kept), fingerprint(units, starts, found), options)
    return np.split(removed, starts[1:-1])


def bands(options: Duplicates) -> list[tuple[int, int]]:
    """Which columns of the fingerprints are compared as a whole, as `first, last + 1`."""
    if isinstance(options, ExactDuplicates):
        return [(0, 4)]
    optimum = MinHashLSH(threshold=options.threshold, num_perm=options.num_permutations)
    return [(band * optimum.r, (band + 1) * optimum.r) for band in range(optimum.b)]


def band_keys(columns: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One number for each row of `columns`."""
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes()) for row in columns), dtype=np.uint64, count=len(columns))


def meetings(keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with equal keys: the first such row and each later one."""
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    first = -1
    for position in equal:
        if first < 0 or keys[order[position]] != keys[first]:
            first = int(order[position - 1])
        yield first, int(order[position])


def fingerprint(units: list[NDArray[np.uint32]], starts: NDArray[np.int64], number: int) -> NDArray[np.uint32]:
    """The fingerprint of a document by its number over all units."""
    unit = int(np.searchsorted(starts, number, side="right")) - 1
    return units[unit][number - starts[unit]]


def same(one: NDArray[np.uint32], other: NDArray[np.uint32], options: Duplicates) -> bool:
    """Whether two fingerprints are of the same document, as `options` has it."""
    share = float((one == other).mean())
    return share == 1 if isinstance(options, ExactDuplicates) else share >= options.threshold
