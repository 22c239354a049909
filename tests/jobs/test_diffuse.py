"""The job on a real local Ray: a student that writes blocks, with and without a teacher, done once, refused with one message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from actors.teacher import deploy, take_down
from jobs.training import run_training
from tests.wfray.data.conftest import random_documents
from wfray.config.convert import Subln
from wfray.config.diffuse import DiffuseConfig
from wfray.config.model import RandomModel
from wfray.config.teacher import TeacherConfig
from wfray.data.batch import CONTEXT, RESPONSE
from wfray.data.packing import pack
from wfray.data.shards import CorpusIndex, SourceIndex, SplitIndex, write_index, write_shard
from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.diffusion.answers import Decoding
from wfray.diffusion.decode import generate
from wfray.diffusion.student import load_diffuser
from wfray.runs import Manifest, read_metrics
from wfray.student import convert, load_original, load_student, materialize, save_student

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("connected"), pytest.mark.timeout(600)]
SHAPE = {"family": "llama", "vocab_size": 49152, "tied_head": True, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1}
SHAPE |= {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64}
SMOLLM2 = yaml.safe_load((Path(__file__).parents[2] / "configs/models/smollm2_135m.yaml").read_text())
SOURCE = RandomModel.model_validate({"kind": "random", "tokenizer": SMOLLM2, "architecture": SHAPE})
LENGTH, STEP = 32, 8 * 32


def write_conversations(directory: Path, sha256: str) -> None:
    """Prompts that are not learned, and responses, some of them empty or shorter than a block."""
    documents = random_documents(0, 60, 30, (1, 40))
    marks = [np.where(np.arange(len(document)) < index % 9, CONTEXT, RESPONSE).astype(np.uint8) for index, document in enumerate(documents)]
    marks[3][:] = CONTEXT
    shard = write_shard(directory, "conversations", pack(documents, LENGTH, 0, marks))
    splits = {"train": SplitIndex(shards=[shard]), "heldout": SplitIndex(shards=[shard])}
    source = SourceIndex(name="conversations", kind="text_files", licence="CC0-1.0", weight=1.0, splits=splits)
    index = CorpusIndex(tokenizer_sha256=sha256, vocab_size=49152, document_end_id=0, sequence_length=LENGTH, sources=[source])
    write_index(directory, index)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with `convert/{original,student}` and `pack/corpus`."""
    run = tmp_path_factory.mktemp("run")
    (run / "convert").mkdir()
    materialize(SOURCE, run / "convert").rename(run / "convert" / "original")
    student = convert(load_original(run / "convert" / "original"), Subln(init="ones"))
    save_student(student, run / "convert" / "student", tokenizer_from=run / "convert" / "original")
    sha256 = tokenizer_sha256(load_directory_tokenizer(run / "convert" / "original"))
    write_conversations(run / "pack" / "corpus", sha256)
    return run


def config(run: Path, stage: dict[str, Any] | None = None, **train: Any) -> DiffuseConfig:
    tree = {
        "run": str(run),
        "student": "convert",
        "block_size": 8,
        "sub_block_size": 4,
        "quantization": {"schedule": "linear", "warmup_tokens": 2 * STEP},
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": 12 * STEP,
            "batch_tokens": STEP,
            "micro_rows": 4,
            "checkpoint_every_tokens": 4 * STEP,
            "threads": 1,
            "optimizer": {"learning_rate": 1e-2},
            **train,
        },
        **(stage or {}),
    }
    return DiffuseConfig.parse(tree, "test")


def test_a_student_learns_to_write_blocks_and_is_done_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(config(run))
    manifest = Manifest.read(run / "diffuse")
    assert manifest is not None and manifest.status == "complete" and [output.path for output in manifest.outputs] == ["student"]
    rows = read_metrics(run / "diffuse" / "metrics.jsonl")
    assert len(rows) == 12 and rows[-1]["loss"] < rows[0]["loss"] - 1.0 and rows[-1]["lambda"] == 1.0
    diffuser = load_diffuser(run / "diffuse" / "student")
    assert diffuser.method.block_size == 8 and diffuser.method.trained_tokens == 12 * STEP
    described = json.loads((run / "diffuse" / "student" / "config.json").read_text())
    assert described["wrinklefree"]["diffusion"]["block_size"] == 8 and described["wrinklefree"]["quantization_lambda"] == 1.0
    fresh = load_student(run / "convert" / "student").get_input_embeddings().weight.mean(dim=0)
    assert not torch.allclose(diffuser.model.get_input_embeddings().weight[49152], fresh), "the mask's embedding is trained"
    answers, counts = generate(diffuser.model, 49152, frozenset(), Decoding(8, 4, max_tokens=20), [[5, 9, 2], [7]])
    assert [len(answer) for answer in answers] == [20, 20] and counts.runs <= counts.tokens
    run_training(config(run))
    assert "diffuse: already done" in capsys.readouterr().out


def test_a_stage_that_ends_early_says_how_far_it_came(run: Path) -> None:
    stop = {"kind": "training", "every_tokens": 2 * STEP, "patience": 1, "min_improvement": 100.0}
    run_training(config(run, {"stage": "ended"}, early_stopping=stop, tokens=40 * STEP))
    rows = read_metrics(run / "ended" / "metrics.jsonl")
    assert 0 < rows[-1]["tokens"] < 40 * STEP
    assert load_diffuser(run / "ended" / "student").method.trained_tokens == rows[-1]["tokens"]


def test_a_corpus_of_another_tokenizer_is_refused_with_one_message(run: Path) -> None:
    write_conversations(run / "other" / "corpus", "b" * 64)
    with pytest.raises(ValueError, match="was packed with another tokenizer") as raised:
        run_training(config(run, {"stage": "refused", "corpus": "other"}))
    assert "Traceback" not in str(raised.value)
    manifest = Manifest.read(run / "refused")
    assert manifest is not None and manifest.status == "failed"


@pytest.mark.slow
def test_a_teacher_application_gives_concrete_scores_and_relations(run: Path) -> None:
    tree = {
        "application": "scores",
        "model": {"kind": "directory", "path": "unused"},
        "wires": ["topk", "qkv"],
        "num_cpus": 0.1,
        "threads": 1,
    }
    deploy(TeacherConfig.parse(tree, "test"), run / "convert" / "original")
    objectives = [
        {"kind": "cross_entropy"},
        {"kind": "concrete_score", "num_ids": 100},
        {"kind": "attention_relations", "layer": 1, "split_heads": 2},
    ]
    run_training(config(run, {"stage": "distilled", "teacher": {"application": "scores"}, "objectives": objectives}))
    take_down("scores")
    rows = read_metrics(run / "distilled" / "metrics.jsonl")
    assert len(rows) == 12 and all(row["concrete_score"] > 0 and row["attention_relations"] > 0 for row in rows)
    assert load_diffuser(run / "distilled" / "student").method.objectives[1]["kind"] == "concrete_score"
