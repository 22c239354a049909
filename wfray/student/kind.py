"""What training must know of a student beside its weights: how it is read, run and written. Causal ones here, others in their rooms."""

from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.student.checkpoint import load_student, save_student
from wfray.student.forward import Forward, run_body
from wfray.student.segments import Segments


class StudentKind(Protocol):
    """See the module docstring. `load` comes first."""

    tokenizer_sha256: str
    """Of the tokenizer that texts are packed with."""
    vocab_size: int
    """Entries that a teacher's distribution may run over."""
    forward: Forward

    def load(self, directory: Path) -> PreTrainedModel:
        """The student in `directory`.

        Raises:
            ValueError: it is none, or does not fit the stage's configuration.
        """
        ...

    def related(self, batch: dict[str, Tensor]) -> Segments:
        """The spans of a packed batch within which attention relations compare positions, as `forward` returns them."""
        ...

    def save(self, model: PreTrainedModel, directory: Path, source: Path, tokens: int) -> None:
        """Write the student, trained with so many `tokens`, into the new `directory`; `source` is where it was loaded from."""
        ...


class CausalStudent:
    """A student that predicts the next token; implements `StudentKind`."""

    forward: Forward = staticmethod(run_body)

    def load(self, directory: Path) -> PreTrainedModel:
        """See `StudentKind`."""
        model = load_student(directory)
        self.tokenizer_sha256 = tokenizer_sha256(load_directory_tokenizer(directory))
        self.vocab_size: int = model.config.vocab_size
        return model

    def related(self, batch: dict[str, Tensor]) -> Segments:
        """See `StudentKind`: whole documents."""
        return Segments.of(batch["segment_ids"])

    def save(self, model: PreTrainedModel, directory: Path, source: Path, tokens: int) -> None:
        """See `StudentKind`."""
        save_student(model, directory, tokenizer_from=source)
