"""The exporter's role: one actor writes GGUF files, proves that they compute what was trained, and measures their speed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from wfray.config.export import ExportConfig
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.heldout import heldout_sequences
from wfray.export.original import write_original
from wfray.export.parity import measure_parity
from wfray.export.speed import measure_speed
from wfray.export.tokenizer import check_tokenizer


class Exporter:
    """Does the work in a process of its own, so that its memory is given back. Paths are on storage that all nodes share."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config

    def write_student(self, student: Path, target: Path) -> dict[str, Any]:
        """Write the student's file; see `write_bitnet`."""
        written = write_bitnet(student, target, self.config.linear_type, self.config.embedding_type)
        return {**asdict(written), "bytes_per_linear_weight": written.bytes_per_linear_weight}

    def write_original(self, original: Path, target: Path) -> dict[str, Any]:
        """Write the original's file; see `write_original`."""
        return {"num_bytes": write_original(original, target)}

    def prove(self, student: Path, file: Path, corpus: Path) -> dict[str, Any]:
        """Compare tokenizer and predictions on held-out text; a miss is a `ValueError`."""
        bounds = self.config.parity
        sequences = heldout_sequences(corpus, bounds.sequences, bounds.max_tokens)
        tokenizer = AutoTokenizer.from_pretrained(student)
        num_tokens = check_tokenizer(file, student, [str(tokenizer.decode(sequence)) for sequence in sequences])
        parity = measure_parity(student, file, sequences, self.config.threads)
        parity.check(bounds, file.name)
        return {**asdict(parity), "num_tokens_tokenized": num_tokens}

    def measure_speed(self, file: Path) -> dict[str, Any]:
        """Tokens per second; see `measure_speed`."""
        return asdict(measure_speed(file, self.config.speed, self.config.threads))
