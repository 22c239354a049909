"""One training worker, without Ray: what it leaves for another attempt, and what that takes up."""

from pathlib import Path

from actors.student_worker import run_worker
from tests.wfray.data.conftest import SEQUENCE_LENGTH, write_corpus
from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import Subln
from wfray.config.data import PackConfig
from wfray.config.train import TrainConfig
from wfray.data.shards import write_index
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import read_metrics
from wfray.runs.files import remove, sha256_of
from wfray.student import convert, save_student

TINY = Path(__file__).parents[2] / "configs" / "pack" / "tiny.yaml"
STEP = 4 * SEQUENCE_LENGTH


def config() -> TrainConfig:
    train = {"tokens": 3 * STEP, "batch_tokens": STEP, "checkpoint_every_tokens": STEP, "optimizer": {"learning_rate": 1e-2}, "threads": 1}
    tree = {"run": "unused", "stage": "pretrain", "student": "unused", "objectives": [{"kind": "cross_entropy"}], "train": train}
    return TrainConfig.parse(tree, "test")


def test_a_student_that_was_trained_and_saved_is_not_trained_again(tmp_path: Path) -> None:
    """As when the job dies after the student was saved and before its manifest says so, with its checkpoints or without."""
    facts = save_tokenizer(PackConfig.load(TINY).tokenizer, tmp_path / "tokenizer")
    save_student(convert(tiny_model("llama"), Subln(init="ones")), tmp_path / "student", tokenizer_from=tmp_path / "tokenizer")
    corpus = write_corpus(tmp_path / "corpus", {"large": 40}, {"large": 1.0})
    write_index(corpus.directory, corpus.index.model_copy(update={"tokenizer_sha256": facts.tokenizer_sha256}))
    stage = tmp_path / "stage"
    stage.mkdir()
    run_worker(config(), stage, tmp_path / "student", corpus.directory, None)
    rows, trained = read_metrics(stage / "metrics.jsonl"), sha256_of(stage / "student")
    assert len(rows) == 3 and (stage / "checkpoints").exists()
    for _ in range(2):
        run_worker(config(), stage, tmp_path / "student", corpus.directory, None)
        assert read_metrics(stage / "metrics.jsonl") == rows and sha256_of(stage / "student") == trained
        remove(stage / "checkpoints")
