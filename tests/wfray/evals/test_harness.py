"""lm-eval through divided requests: equal to one process to the bit, to a plain reference scorer, and resumed where it stopped."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from wfray.config.convert import Subln
from wfray.config.harness import PRESETS, Harness
from wfray.config.model import RandomModel
from wfray.data.tokenizer import load_tokenizer
from wfray.evals.divided import Answer, DividedLM
from wfray.evals.gguf_lm import GGUFLM
from wfray.evals.harness import TASKS, compared, item_scores, run_tasks, save, summary, task_manager
from wfray.evals.harness_scores import HarnessScores
from wfray.evals.models import StudentLM
from wfray.evals.slices import Kind, Request, divide
from wfray.evals.summaries import corpus_bleu, process_results
from wfray.export.original import write_original
from wfray.export.reference import training_logits
from wfray.student import convert, load_original, load_student, materialize, save_student

SHAPE = {"family": "llama", "vocab_size": 49152, "tied_head": True, "head_dim": 16, "num_heads": 2, "num_kv_heads": 1}
SHAPE |= {"num_layers": 2, "hidden_size": 32, "intermediate_size": 64}
SMOLLM2 = yaml.safe_load((Path(__file__).parents[3] / "configs/models/smollm2_135m.yaml").read_text())
SOURCE = RandomModel.model_validate({"kind": "random", "tokenizer": SMOLLM2, "architecture": SHAPE})
ITEMS = [
    ("The river ran past the old", ["mill.", "violin of the queen.", "and very blue number"], 0),
    ("Two and two are", ["four", "five", "a small yellow bird, which sang"], 0),
    ("def area(width, height):\n    return", ["width * height", "None", "height"], 0),
    ("Question: is water wet?\nAnswer:", ["yes", "no", "maybe"], 0),
    ("A house of", ["cards", "four hundred and twelve storeys", "brick"], 2),
    ("", ["Once upon a time", "zzz", "The"], 2),
    ("In the beginning God created the heaven and the", ["earth", "sea", "bread and the wine of the vineyard"], 0),
] * 2
TEXTS = ["The ships hung in the sky.", "All happy families are alike; each unhappy family is unhappy in its own way. " * 30, "Yes"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `original/`, `student/`, `model.gguf` and `tasks/` of all three kinds of requests."""
    directory = tmp_path_factory.mktemp("harness")
    materialize(SOURCE, directory).rename(directory / "original")
    student = convert(load_original(directory / "original"), Subln(init="ones"), None)
    save_student(student, directory / "student", tokenizer_from=directory / "original")
    write_original(directory / "original", directory / "model.gguf")
    write_tasks(directory / "tasks")
    return directory


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    rows = [{"context": context, "choices": choices, "gold": gold} for context, choices, gold in ITEMS]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    common = {"test_split": "test", "metadata": {"version": 1}}
    items, texts = (
        {**common, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        for name in ("items", "texts")
    )
    scored = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    choices = {"task": "tiny_choices", "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_target": "gold", **items}
    choices |= {"doc_to_choice": "{{choices}}", "metric_list": scored}
    rolling = {"task": "tiny_rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}", **texts}
    rolling |= {"metric_list": [{"metric": "byte_perplexity"}]}
    writing = {"task": "tiny_writing", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text}}", **texts}
    writing |= {"metric_list": [{"metric": "exact_match"}], "generation_kwargs": {"max_gen_toks": 5, "do_sample": False, "until": ["\n"]}}
    for task in (choices, rolling, writing):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))


class HereWorkers:
    """A model in this process that answers slice by slice, in an order of its own, and may stop after some."""

    def __init__(self, lm: Any, stop_after: int | None = None) -> None:
        self.lm, self.stop_after, self.num_answered = lm, stop_after, 0

    def divide(self, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
        return divide(self.lm, kind, requests, size)

    def answers(self, kind: Kind, slices: Sequence[Sequence[Request]]) -> Iterator[tuple[int, list[Answer]]]:
        for number in reversed(range(len(slices))):
            if self.num_answered == self.stop_after:
                raise KeyboardInterrupt
            instances = [Instance(kind, {}, tuple(request), index) for index, request in enumerate(slices[number])]
            self.num_answered += 1
            yield number, list(getattr(self.lm, kind)(instances))

    def ask(self, name: str, *arguments: Any) -> Any:
        found = getattr(self.lm, name)
        return found(*arguments) if callable(found) else found


def harness(place: Path, **change: Any) -> Harness:
    tree = {"tasks": ["tiny_choices", "tiny_rolling", "tiny_writing"], "include": [str(place / "tasks")], "batch_size": 3, **change}
    return Harness.parse(tree, origin="a test")


@pytest.fixture(scope="module")
def lms(place: Path) -> dict[str, Any]:
    """What a single-process lm-eval run uses."""
    settings = {"batch_size": 3, "device": "cpu"}
    return {
        "original": HFLM(str(place / "original"), dtype="float32", **settings),
        "student": StudentLM(str(place / "student"), **settings),
        "gguf": GGUFLM(str(place / "model.gguf"), context=256, threads=1),
    }


def divided(lm: Any, place: Path, kept: Path, **change: Any) -> dict[str, Any]:
    return run_tasks(DividedLM(HereWorkers(lm), kept, 4, lambda share, kind: None), harness(place, **change))


@pytest.mark.parametrize("kind", ["original", "student", "gguf"])
def test_divided_requests_give_the_results_of_one_process_to_the_bit(kind: str, lms: dict[str, Any], place: Path, tmp_path: Path) -> None:
    settings = harness(place)
    manager = TaskManager(include_path=settings.include, include_defaults=False)
    whole = simple_evaluate(model=lms[kind], tasks=settings.task_names, task_manager=manager)
    parts = divided(lms[kind], place, tmp_path)
    assert len(list(tmp_path.iterdir())) >= 7
    for key in ("results", "samples", "n-samples", "configs", "versions", "n-shot", "higher_is_better"):
        assert json.dumps(parts[key], default=str) == json.dumps(whole[key], default=str), key


def test_scores_are_those_of_a_plain_scorer(lms: dict[str, Any], place: Path, tmp_path: Path) -> None:
    """One text at a time through plain transformers, no batches, no padding, no cache."""
    model = AutoModelForCausalLM.from_pretrained(place / "original", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "original")
    right, right_by_byte = 0, 0
    for context, choices, gold in ITEMS:
        sums = []
        for choice in choices:
            prefix = tokenizer(context).input_ids if context else [tokenizer.bos_token_id]
            whole = tokenizer(f"{context} {choice}").input_ids if context else prefix + tokenizer(f" {choice}").input_ids
            with torch.no_grad():
                log_probs = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
            sums.append(sum(log_probs[at - 1, whole[at]].item() for at in range(len(prefix), len(whole))))
        right += max(range(3), key=lambda number: sums[number]) == gold
        right_by_byte += max(range(3), key=lambda number: sums[number] / len(choices[number])) == gold
    found = divided(lms["original"], place, tmp_path, tasks=["tiny_choices"])["results"]["tiny_choices"]
    assert found["acc,none"] == right / len(ITEMS)
    assert found["acc_norm,none"] == right_by_byte / len(ITEMS)


def test_a_student_scores_as_its_own_forward_pass_does(lms: dict[str, Any], place: Path) -> None:
    student, tokenizer = load_student(place / "student"), load_tokenizer(SOURCE)
    for context, continuation in (("The river ran past the old", " mill."), ("Two and two are", " a small yellow bird, which sang")):
        prefix, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
        log_probs = torch.log_softmax(training_logits(student, [whole]), -1)
        expected = sum(log_probs[at - 1, whole[at]].item() for at in range(len(prefix), len(whole)))
        [(found, _)] = lms["student"].loglikelihood([Instance("loglikelihood", {}, (context, continuation), 0)])
        assert found == pytest.approx(expected, abs=1e-3)


def test_a_gguf_file_scores_and_writes_as_the_checkpoint_that_it_was_made_from(lms: dict[str, Any]) -> None:
    pairs = [(context, f" {choice}") for context, choices, _ in ITEMS[:5] for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    for (ours, _), (theirs, _) in zip(lms["gguf"].loglikelihood(asked), lms["original"].loglikelihood(asked), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    texts = [Instance("loglikelihood_rolling", {}, (TEXTS[0],), 0)]
    assert lms["gguf"].loglikelihood_rolling(texts) == pytest.approx(lms["original"].loglikelihood_rolling(texts), rel=2e-3)
    writing = [Instance("generate_until", {}, (TEXTS[0], {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}), 0)]
    assert lms["gguf"].generate_until(writing) == lms["original"].generate_until(writing)


def test_what_was_answered_before_a_kill_is_not_asked_again(lms: dict[str, Any], place: Path, tmp_path: Path) -> None:
    def run(workers: HereWorkers) -> dict[str, Any]:
        return run_tasks(DividedLM(workers, tmp_path / "kept", 4, lambda share, kind: None), harness(place, tasks=["tiny_choices"]))

    first, second = HereWorkers(lms["original"], stop_after=3), HereWorkers(lms["original"])
    with pytest.raises(KeyboardInterrupt):
        run(first)
    resumed = run(second)
    whole = divided(lms["original"], place, tmp_path / "whole", tasks=["tiny_choices"])
    assert first.num_answered == 3 and second.num_answered == len(list((tmp_path / "whole").iterdir())) - 3
    assert resumed["results"] == whole["results"]


def test_a_prompt_whose_last_turn_stays_open_is_the_same_for_a_file_as_for_its_checkpoint(lms: dict[str, Any]) -> None:
    said = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "The best answer is"}]
    for add_generation_prompt, turns in ((True, said[:1]), (False, said)):
        prompts = [lms[name].apply_chat_template(turns, add_generation_prompt=add_generation_prompt) for name in ("original", "gguf")]
        assert prompts[0] == prompts[1]
    assert prompts[0].endswith("The best answer is")


def test_every_output_is_kept_and_two_subjects_are_compared(lms: dict[str, Any], place: Path, tmp_path: Path) -> None:
    for name in ("original", "student"):
        save(divided(lms[name], place, tmp_path / f"{name}-kept"), {"model": name}, tmp_path / name)
    samples = [json.loads(line) for line in (tmp_path / "student" / "samples_tiny_choices.jsonl").read_text().splitlines()]
    assert [sample["doc"]["context"] for sample in samples] == [context for context, _, _ in ITEMS]
    assert all(len(sample["resps"]) == 3 and sample["arguments"] for sample in samples)
    scores = summary("student", "student", tmp_path / "student")
    score = scores.find("tiny_choices", "acc")
    assert score is not None and score.value == sum(sample["acc"] for sample in samples) / len(samples) and score.num_items == len(samples)
    found = {(each.task, each.metric): each.paired for each in compared([("original", "student")], tmp_path)}
    assert found[("tiny_choices", "acc")].num_items == len(ITEMS)
    difference = score.value - summary("original", "original", tmp_path / "original").find("tiny_choices", "acc").value  # type: ignore[union-attr]
    assert found[("tiny_choices", "acc")].difference == pytest.approx(difference)


def write_subject(folder: Path, scores: dict[str, list[float]], reported: dict[str, float]) -> None:
    """A subject's folder as lm-eval would leave it: `"metric,filter"` -> the score of each item, and what it makes of them."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"results": {"sums": reported}}))
    samples = [
        {"doc_id": item, "doc_hash": f"{item}", "filter": key.partition(",")[2], "metrics": [metric], metric: value}
        for key, values in scores.items()
        for metric in [key.partition(",")[0]]
        for item, value in enumerate(values)
    ]
    (folder / "samples_sums.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def test_filters_of_one_metric_stay_apart_in_table_figures_and_comparison(tmp_path: Path) -> None:
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    write_subject(tmp_path / "a", {strict: [1, 1, 1, 0], flexible: [1, 1, 1, 1]}, {strict: 0.75, flexible: 1.0})
    write_subject(tmp_path / "b", {strict: [0, 0, 0, 0], flexible: [1, 1, 1, 1]}, {strict: 0.0, flexible: 1.0})
    scores = HarnessScores(subjects=[summary(name, "hub", tmp_path / name) for name in "ab"], comparisons=compared([("a", "b")], tmp_path))
    differences = {each.metric: each.paired.difference for each in scores.comparisons}
    assert differences == {"exact_match, flexible-extract": 0.0, "exact_match, strict-match": -0.75}
    assert scores.figures()["a"]["sums"] == {"exact_match, strict-match": 0.75, "exact_match, flexible-extract": 1.0}
    rows = [line.split("  ") for line in scores.table().splitlines()]
    assert [row[-1].strip() for row in rows if row[0] == "sums, exact_match, strict-match"] == ["0"]


def test_answers_with_unusual_ends_of_lines_are_read_back(tmp_path: Path) -> None:
    sample = {"doc_id": 0, "doc_hash": "0", "filter": "none", "metrics": ["acc"], "acc": 1.0, "resps": "a\u2028b\u2029c\x85d"}
    save({"results": {}, "config": {}, "samples": {"sums": [sample]}}, {}, tmp_path)
    assert item_scores(tmp_path / "samples_sums.jsonl") == {"acc": {(0, "0"): 1.0}}


def test_only_means_of_items_are_compared_and_only_of_the_same_items(tmp_path: Path) -> None:
    """Of a perplexity lm-eval keeps each item's log-likelihood, whose difference has the other sign and another size."""
    keys = {"perplexity,none": 5.0, "acc,none": 0.5}
    for name, fall in (("a", 0.0), ("b", 0.7)):
        items = {"perplexity,none": [-1.5 - fall, -1.7 - fall], "acc,none": [0, 1]}
        write_subject(tmp_path / name, items, {**keys, "perplexity,none": 4.953 * 2.0138 ** (fall / 0.7)})
    assert [each.metric for each in compared([("a", "b")], tmp_path)] == ["acc"]
    write_subject(tmp_path / "c", {"acc,none": [0, 1, 1]}, {"acc,none": 2 / 3})
    with pytest.raises(ValueError, match="a and c were asked different items of sums: delete"):
        compared([("a", "c")], tmp_path)


def test_every_preset_names_tasks_that_exist_and_unknown_ones_are_refused() -> None:
    every = sorted({task for tasks in PRESETS.values() for task in tasks})
    with pytest.raises(ValueError, match="knows no task no_such_task: see"):
        task_manager(Harness(tasks=[*every, "no_such_task"]))


def test_the_stock_command_knows_students(place: Path, tmp_path: Path, lms: dict[str, Any]) -> None:
    """As documented: our model types are known once `wrinklefree.yaml` is among the tasks."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "lm_eval", "--model", "wrinklefree", "--model_args", f"pretrained={place / 'student'}"]
    command += ["--tasks", f"{TASKS / 'wrinklefree.yaml'},{place / 'tasks' / 'tiny_choices.yaml'}", "--batch_size", "3"]
    subprocess.run([*command, "--output_path", str(tmp_path / "out")], cwd=root, check=True, capture_output=True)
    [file] = (tmp_path / "out").rglob("results_*.json")
    ours = divided(lms["student"], place, tmp_path / "kept", tasks=["tiny_choices"])["results"]["tiny_choices"]
    assert json.loads(file.read_text())["results"]["tiny_choices"] == json.loads(json.dumps(ours))


def test_summaries_are_scored_alike_to_the_papers() -> None:
    same = process_results({"highlights": "the cat sat on the mat today"}, ["the cat sat on the mat today"])
    assert same["rougeLsum"] == 100 and corpus_bleu([same["bleu"]]) == pytest.approx(100)
    half = process_results({"highlights": "the cat sat"}, ["the dog sat"])
    assert half["rouge1"] == pytest.approx(200 / 3) and half["rouge2"] == 0
