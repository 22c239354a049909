"""The quality studies: every file becomes valid stages, arms differ in what they say and in nothing else, tables say what was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.inputs import prepare
from benchmarks.quality.language import LanguageStudy, at_seconds
from benchmarks.quality.study import ARMS, Study
from benchmarks.quality.table import by_item, results, table
from jobs.stages import PlannedStage, plan_stages, stages_read
from wfray.config.convert import Compensated, ConvertConfig
from wfray.config.evaluate import EvaluateConfig
from wfray.config.train import TrainConfig
from wfray.evals import Accuracy, Score, Scores, SubjectScores
from wfray.evals.paired import compare

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "quality").glob("*.yaml"))


def stages(study: Study, run: Path) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in plan_stages(study.pipeline(ROOT, run), run, ROOT)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_study_is_a_pipeline_of_valid_stages(path: Path, tmp_path: Path) -> None:
    if path.stem == "language":
        study = LanguageStudy.load(path)
        planned = plan_stages(study.pipeline(tmp_path), tmp_path, ROOT)
        assert len(planned) == 5 + len(study.arms) * len(study.budgets)
        return
    planned_by_name = stages(Study.load(path, ["seeds=[0, 1]"]), tmp_path)
    for name, stage in planned_by_name.items():
        made_before = list(planned_by_name)[: list(planned_by_name).index(name)]
        parents = stage.config.parents if isinstance(stage.config, TrainConfig) else {}
        assert set(parents.values()) <= set(made_before), name


def test_arms_differ_in_student_and_terms_alone(tmp_path: Path) -> None:
    planned = stages(Study.load(ROOT / "benchmarks/quality/sentiment.yaml", ["seeds=[3]"]), tmp_path)
    arms = {name: planned[f"{name}-3"].config for name, arm in ARMS.items() if arm.trained}
    assert all(isinstance(arm, TrainConfig) for arm in arms.values())
    shared = [
        json.dumps([arm.corpus, arm.train.model_dump(mode="json", exclude={"optimizer", "gradient_ratio_every_steps", "learned"})])  # type: ignore[attr-defined]
        for arm in arms.values()
    ]
    assert len(set(shared)) == 1
    assert {name: arm.student for name, arm in arms.items()} == {  # type: ignore[attr-defined]
        **dict.fromkeys(("fp_sft", "bitnet_sft"), "convert-plain"),
        **dict.fromkeys(("subln", "layers_kd"), "convert"),
        **dict.fromkeys(("ct", "logits_kd", "attention_kd", "bitdistill", "ct_gradual"), "align"),
        **dict.fromkeys(("teacher_start", "teacher_start_gradual"), "convert-tuned-3"),
        "teacher_plain_gradual": "fp_sft-3",
        **dict.fromkeys(("rounded_norms", "rounded_unquantized"), "convert-rounded-3"),
    }
    assert {name for name, arm in arms.items() if arm.quantization.schedule == "none"} == {"fp_sft"}  # type: ignore[attr-defined]
    taught = {"logits_kd", "attention_kd", "bitdistill", "layers_kd", "teacher_start", "teacher_start_gradual", "teacher_plain_gradual"}
    taught |= {"rounded_norms", "rounded_unquantized"}
    assert {name for name, arm in arms.items() if arm.teacher} == taught  # type: ignore[attr-defined]
    gradual = {name: arm.quantization.warmup_tokens for name, arm in arms.items() if arm.quantization.warmup_tokens}  # type: ignore[attr-defined]
    assert gradual == dict.fromkeys(("ct_gradual", "teacher_start_gradual", "teacher_plain_gradual"), arms["ct"].train.tokens // 2)  # type: ignore[attr-defined]
    assert arms["bitdistill"].parents["teacher"] == "fp_sft-3"  # type: ignore[attr-defined]


def test_a_student_of_the_tuned_teacher_is_made_anew_with_it(tmp_path: Path) -> None:
    planned = stages(Study.load(ROOT / "benchmarks/quality/sentiment.yaml", ["seeds=[3]", "arms=[teacher_start]"]), tmp_path)
    assert "align" not in planned
    assert stages_read(planned["convert-tuned-3"].config) == {"fp_sft-3", "text"}  # type: ignore[arg-type]


def test_a_rounded_student_is_evaluated_untrained_and_what_is_not_ternary_learns(tmp_path: Path) -> None:
    study = Study.load(ROOT / "benchmarks/quality/qnli_articles.yaml", ["seeds=[3]", "arms=[rounded, rounded_norms, rounded_unquantized]"])
    planned = stages(study, tmp_path)
    rounding = planned["convert-rounded-3"].config
    assert isinstance(rounding, ConvertConfig) and isinstance(rounding.rounding, Compensated)
    assert stages_read(rounding) == {"fp_sft-3", "task"} and rounding.subln.placement == "none"
    assert rounding.rounding.piece_tokens is None and rounding.rounding.tokens == study.rounding_tokens
    assert "rounded-3" not in planned
    trained = planned["rounded_norms-3"].config
    assert isinstance(trained, TrainConfig) and trained.train.optimizer.learning_rate == study.norms_learning_rate
    assert trained.train.learned == "norms" and trained.train.optimizer.embedding_learning_rate is None
    trained = planned["rounded_unquantized-3"].config
    assert isinstance(trained, TrainConfig) and trained.train.optimizer.learning_rate == study.norms_learning_rate
    assert trained.train.learned == "unquantized" and trained.train.optimizer.embedding_learning_rate == study.embedding_learning_rate
    evaluation = planned["evaluate-3"].config
    assert isinstance(evaluation, EvaluateConfig)
    assert [subject.model_dump()["reference"] for subject in evaluation.subjects] == [
        "fp_sft-3",
        "convert-rounded-3",
        "rounded_norms-3",
        "rounded_unquantized-3",
    ]


def test_the_table_has_an_untrained_arm(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    for seed in (0, 1):
        write_seed(tmp_path, seed, {"fp_sft": truth, "rounded": truth[:80] + [2] * 20}, truth)
        path = write_stage(tmp_path, f"convert-rounded-{seed}", {"num_parameters": 7}) / "manifest.json"
        config = {"stage": f"convert-rounded-{seed}", "model": {"path": f"fp_sft-{seed}/student"}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    row = results(tmp_path)[1]
    assert (row.arm, row.tokens, row.seconds, row.accuracy) == ("rounded", 0, 10.0, pytest.approx(0.8))


def test_an_arm_whose_term_the_configuration_lacks_is_refused(tmp_path: Path) -> None:
    study = Study.load(ROOT / "benchmarks/quality/mnli_qwen3_0_6b.yaml", ["arms=[layers_kd]"])
    with pytest.raises(ValueError, match="arm layers_kd needs objectives of kind alignment: configs/distill/qwen3_0_6b.yaml has none"):
        study.pipeline(ROOT, tmp_path)


def test_a_run_is_of_one_model_and_task(tmp_path: Path) -> None:
    study = Study.load(ROOT / "benchmarks/quality/sentiment.yaml")
    (tmp_path / "model").mkdir()
    (tmp_path / "train.jsonl").touch()
    prepare(study, tmp_path)
    prepare(study.model_copy(update={"seeds": [7]}), tmp_path)
    with pytest.raises(ValueError, match="holds the model and text of another study: name another `run`, or delete it"):
        prepare(study.model_copy(update={"num_layers": 6}), tmp_path)


def write_stage(run: Path, name: str, figures: dict[str, Any], seconds: float = 10.0) -> Path:
    directory = run / name
    directory.mkdir(parents=True)
    manifest = {"stage": name, "status": "complete", "config": {}, "config_sha256": "", "parents": {}, "started": 0.0}
    (directory / "manifest.json").write_text(json.dumps({**manifest, "figures": figures, "wall_seconds": seconds}))
    return directory


def write_seed(run: Path, seed: int, answers: dict[str, list[int]], truth: list[int]) -> None:
    subjects = []
    for name, given in answers.items():
        found = Accuracy(truth=truth, answers=given)
        sources = {"movies": Score(num_tokens=1, sum_nats=1.0)}
        subjects.append(SubjectScores(name=name, kind="student", reference=name, sources=sources, accuracy={"movies": found}))
        write_stage(run, f"{name}-{seed}", {"tokens": 4096})
    Scores(precision="float32", subjects=subjects).write(write_stage(run, f"evaluate-{seed}", {}))


def test_the_table_pairs_every_arm_with_the_teacher_over_all_seeds_in_the_run(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    for seed in (0, 1):
        answers = {"fp_sft": truth[:90] + [2] * 10, "bitnet_sft": truth[: 70 + 4 * seed] + [2] * (30 - 4 * seed)}
        write_seed(tmp_path, seed, answers, truth)
    teacher, student = results(tmp_path)
    assert (teacher.accuracy, teacher.to_teacher, teacher.seeds) == (pytest.approx(0.9), None, [0, 1])
    assert student.by_seed == [0.7, 0.74] and student.accuracy == pytest.approx(0.72)
    assert student.to_teacher is not None and student.to_teacher.difference == pytest.approx(-0.18)
    assert student.to_teacher_by_seed == pytest.approx([-0.2, -0.16])
    assert "BitNet-SFT" in table([teacher, student]) and "-18.0" in table([teacher, student]) and "-20.0 -16.0" in table([teacher, student])


def test_seeds_of_different_recipes_are_not_averaged(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    for seed in (0, 1):
        write_seed(tmp_path, seed, {"fp_sft": truth}, truth)
        path = tmp_path / f"fp_sft-{seed}" / "manifest.json"
        config = {"stage": f"fp_sft-{seed}", "train": {"seed": seed, "tokens": 4096 * (seed + 1)}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    with pytest.raises(ValueError, match="fp_sft-0 and fp_sft-1 were trained with different settings"):
        results(tmp_path)


def test_the_student_of_each_seeds_own_teacher_is_one_recipe(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    for seed in (0, 1):
        write_seed(tmp_path, seed, {"fp_sft": truth, "teacher_start": truth}, truth)
        path = tmp_path / f"teacher_start-{seed}" / "manifest.json"
        config = {"student": f"convert-tuned-{seed}", "train": {"seed": seed}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    assert [row.arm for row in results(tmp_path)] == ["fp_sft", "teacher_start"]


def test_seeds_that_answer_alike_make_no_interval_narrower(tmp_path: Path) -> None:
    truth = [0, 1] * 50
    answers = {"fp_sft": truth[:90] + [2] * 10, "bitnet_sft": truth[:70] + [2] * 30}
    for run, seeds in ((tmp_path / "one", 1), (tmp_path / "three", 3)):
        for seed in range(seeds):
            write_seed(run, seed, answers, truth)
    once, thrice = results(tmp_path / "one")[1], results(tmp_path / "three")[1]
    assert once.to_teacher is not None and thrice.to_teacher is not None
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.to_teacher.low, thrice.to_teacher.num_items) == (pytest.approx(once.to_teacher.low), 100)


def test_intervals_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """Items differ in how hard they are, three seeds answer each, and no arm is better: 95% of the intervals hold 0."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(300):
        hard = generator.beta(0.7, 0.4, size=200)
        first, second = ((generator.random((3, 200)) < hard) for _ in range(2))
        paired = compare(
            *(by_item([Accuracy(truth=[1] * 200, answers=row.astype(int).tolist()) for row in arm]) for arm in (first, second))
        )
        held += paired.low <= 0 <= paired.high
    assert 0.92 < held / 300 < 0.98


def test_equal_time_is_interpolated_over_its_logarithm() -> None:
    points = [(1.0, 8.0), (10.0, 6.0), (100.0, 5.0)]
    assert at_seconds(points, 10.0**0.5) == pytest.approx(7.0)
    assert at_seconds(points, 100.0) == pytest.approx(5.0)
    assert at_seconds(points, 0.1) == 8.0
