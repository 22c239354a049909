"""The exporter's role: one actor writes a student's files, proves that they compute what was trained, and measures their speed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from wfray.config.export import GGUF, ExportConfig, Format
from wfray.export.formats import open_engine, write_format
from wfray.export.heldout import heldout_sequences
from wfray.export.llama_cpp_run import LlamaCppRun
from wfray.export.original import write_original
from wfray.export.parity import measure_parity
from wfray.export.speed import measure_speed
from wfray.export.tokenizer import check_tokenizer


class Exporter:
    """Does the work in a process of its own, so that its memory is given back. Paths are on storage that all nodes share."""

    def __init__(self, config: ExportConfig) -> None:
        self.config = config

    def write_student(self, student: Path, target: Path, wanted: Format) -> dict[str, Any]:
        """Write the student in a format; see `write_format`."""
        written = write_format(student, target, wanted)
        return {**asdict(written), "bytes_per_linear_weight": written.bytes_per_linear_weight}

    def write_original(self, original: Path, target: Path) -> dict[str, Any]:
        """Write the original's file; see `write_original`."""
        return {"num_bytes": write_original(original, target)}

    def prove(self, student: Path, target: Path, wanted: Format, corpus: Path) -> dict[str, Any]:
        """Compare tokenizer and predictions on held-out text; a miss is a `ValueError`."""
        bounds = self.config.parity
        sequences = heldout_sequences(corpus, bounds.sequences, bounds.max_tokens)
        with open_engine(student, target, wanted, max(map(len, sequences)), self.config.threads) as engine:
            tokenized = {"num_tokens_tokenized": check_texts(student, engine.path, sequences)} if isinstance(engine, LlamaCppRun) else {}
            parity = measure_parity(student, engine, sequences, self.config.threads)
        parity.check(bounds, wanted.path)
        return {**asdict(parity), **tokenized}

    def measure_speed(self, file: Path, wanted: Format | None) -> dict[str, Any]:
        """Tokens per second in llama.cpp, where that runs the format; None is the original's file. See `measure_speed`."""
        if wanted is not None and not isinstance(wanted, GGUF):
            return {}
        return {"speed": asdict(measure_speed(file, self.config.speed, self.config.threads))}


def check_texts(student: Path, file: Path, sequences: list[list[int]]) -> int:
    """`check_tokenizer` on the text of sequences of token ids."""
    tokenizer = AutoTokenizer.from_pretrained(student)
    return check_tokenizer(file, student, [str(tokenizer.decode(sequence)) for sequence in sequences])
