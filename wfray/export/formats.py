"""The formats by their configuration: who writes one, and in which engine it is proved."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from wfray.config.export import GGUF, I2S, Format, HuggingFace
from wfray.export.engine import Engine
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.hugging_face import write_hugging_face
from wfray.export.llama_cpp_run import LlamaCppRun
from wfray.export.model_run import open_directory
from wfray.export.transcode import SAME_ROWS, write_transcoded
from wfray.export.written import WrittenModel


def write_format(student: Path, target: Path, wanted: Format) -> WrittenModel:
    """Write a student in a format.

    Raises:
        ValueError: the format cannot express the student.
    """
    if isinstance(wanted, HuggingFace):
        return write_hugging_face(student, target, wanted.form)
    return write_bitnet(student, target, wanted)


@contextmanager
def open_engine(student: Path, target: Path, wanted: Format, context: int, threads: int) -> Iterator[Engine]:
    """The engine of a written format, for sequences of up to `context` tokens.

    An I2_S file is read back and stored anew in a type of stock llama.cpp, which computes the same graph.
    """
    with TemporaryDirectory(dir=target.parent, prefix=".proof.partial-") as directory:
        match wanted:
            case HuggingFace():
                engine: Engine = open_directory(target, wanted)
            case GGUF():
                engine = LlamaCppRun(target, wanted.linear_type, wanted.embedding_type, context, threads)
            case I2S():
                file = Path(directory) / "transcoded.gguf"
                write_transcoded(student, target, file, wanted)
                engine = LlamaCppRun(file, SAME_ROWS, wanted.embedding_type, context, threads)
        with closing(engine):
            yield engine
