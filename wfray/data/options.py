"""What packing depends on besides the text, as every task is told it, and where what is kept for a resume stands.

Everything that is kept is named by a hash of all that it depends on, so a task takes what is there without asking who made it.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from wfray.config.cleaning import OnBadInput
from wfray.data.encoding import TokenizerFacts
from wfray.data.shards import WORK
from wfray.data.sources import Unit

BYTES_PER_TOKEN = 4
"""Of ordinary text; decides only how many documents go into a shard."""


class PackOptions(BaseModel):
    """What packing depends on besides the text."""

    corpus: str
    """The corpus directory, on a file system that every worker sees."""
    cache: str
    """See `wfray.data.packages.fetch`."""
    tokenizer: TokenizerFacts
    sequence_length: int
    rows_per_shard: int
    heldout_rows: int
    seed: int
    packing: Literal["best_fit", "concatenate"] = "best_fit"
    unit_bytes: int
    """Text held at once."""
    on_bad_input: OnBadInput = "raise"
    evaluation_words: int | None = None
    """Length of the runs in `evaluation_runs`; None: evaluation sets are not looked for."""
    evaluations_sha256: str = ""
    """Of those runs."""
    duplicates: bool = False
    """Whether every unit has a mask of its duplicates."""
    config_sha256: str = ""
    """Of the whole configuration: a receipt is valid for one only."""

    @property
    def directory(self) -> Path:
        return Path(self.corpus)

    @property
    def tokenizer_json(self) -> Path:
        """Where the workers find the tokenizer."""
        return self.directory / "tokenizer" / "tokenizer.json"

    @property
    def evaluation_runs(self) -> Path:
        """Where the workers find the word runs of the evaluation sets."""
        return self.directory / WORK / "evaluation_runs.npy"

    @property
    def bytes_per_shard(self) -> int:
        """Of text."""
        return self.rows_per_shard * self.sequence_length * BYTES_PER_TOKEN

    def unit_key(self, unit: Unit) -> str:
        """A hash of a unit, its files by their state, and of the configuration: names what is kept of it for a resume."""
        stated = [
            unit.model_dump_json(exclude={"holds_out"}),
            self.config_sha256,
            self.tokenizer.model_dump_json(),
            self.evaluations_sha256,
        ]
        return hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:32]

    def fingerprints(self, unit: Unit) -> Path:
        """Where a unit's fingerprints are kept while duplicates are looked for."""
        return self.directory / WORK / "fingerprints" / f"{self.unit_key(unit)}.npy"

    def mask(self, unit: Unit) -> Path:
        """Which documents of a unit are duplicates, where `duplicates` are looked for."""
        return self.directory / WORK / "masks" / f"{self.unit_key(unit)}.npy"

    def receipt(self, unit: Unit, encoder: str) -> Path:
        """What became of a unit whose documents an encoder of this identity encoded."""
        mask = hashlib.sha256(self.mask(unit).read_bytes()).hexdigest()[:16] if self.duplicates else "whole"
        name = f"{self.unit_key(unit)}-{encoder[:16]}-{mask}-{'heldout' if unit.holds_out else 'train'}.json"
        return self.directory / WORK / "units" / name
