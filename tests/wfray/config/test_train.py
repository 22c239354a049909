"""Mistakes in the configuration of a training stage are refused when it is parsed, with the mend."""

from typing import Any

import pytest

from wfray.config.base import apply_override
from wfray.config.optimizer import AdamW, Muon, MuonClip, ZClip
from wfray.config.train import TrainConfig


def parse(*overrides: str) -> TrainConfig:
    """A stage of 100 steps of 1,000 tokens, changed."""
    tree: dict[str, Any] = {
        "run": "runs/x",
        "stage": "distill",
        "student": "pretrain",
        "teacher": {"application": "teacher"},
        "objectives": [{"kind": "cross_entropy"}, {"kind": "logits_kl"}],
        "train": {"tokens": 100_000, "batch_tokens": 1000, "checkpoint_every_tokens": 10_000, "optimizer": {"learning_rate": 1e-3}},
    }
    for override in overrides:
        apply_override(tree, override)
    return TrainConfig.parse(tree, "a test")


ZCLIP = "train.clipping={kind: zclip, warmup_steps: 100}"
STOP = "train.early_stopping={kind: heldout, every_tokens: %s, patience: %s}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.tokens=999"], r"train: tokens 999 is less than one step \(batch_tokens 1000\)"),
        (["train.tokens=0"], "train.tokens: Input should be greater than 0"),
        (["train.checkpoint_every_tokens=999"], "checkpoint_every_tokens 999 is less than one step"),
        (["quantization={schedule: linear, warmup_tokens: 99001}"], "warmup_tokens 99001 leaves none of train.tokens 100000 at lambda 1"),
        (["quantization={schedule: linear}"], "warmup_tokens belongs to every schedule but constant"),
        (["quantization={schedule: constant, warmup_tokens: 5}"], "warmup_tokens belongs to every schedule but constant"),
        (["train.schedule.warmup_fraction=1.0"], "warmup_fraction: Input should be less than 1"),
        (["train.schedule={shape: wsd, warmup_fraction: 0.5, decay_fraction: 0.6}"], "exceed 1: the rate would fall before it has risen"),
        ([ZCLIP], "clipping.warmup_steps 100 leaves none of the stage's 100 steps"),
        (["train.clipping={kind: zclip, threshold: 0}"], "threshold: Input should be greater than 0"),
        (["train.clipping={kind: zcilp}"], "clipping: Input tag 'zcilp'.*'fixed', 'zclip'"),
        (["train.optimizer.kind=sgd"], "optimizer: Input tag 'sgd'.*'adamw', 'muon', 'muon_clip'"),
        (["train.optimizer.tau=50"], r"optimizer.adamw.tau: unknown key"),
        (["train.optimizer={kind: muon_clip, learning_rate: 1.0e-3, tau: -1}"], "tau: Input should be greater than 0"),
        (["train.compile=true", "train.num_workers=2"], "set train.compile=false or train.num_workers=1"),
        (["train.average={decay: 1.0}"], "decay: Input should be less than 1"),
        ([STOP % (999, 3)], "early_stopping.every_tokens 999 is less than one step"),
        ([STOP % (25_000, 3)], "early_stopping could never end the stage: 3 measurements after the first, 25000 tokens apart"),
        (["train.gradient_ratio_every_steps=0"], "gradient_ratio_every_steps: Input should be greater than 0"),
        (
            ["train.gradient_ratio_every_steps=5", "teacher=null", "objectives=[{kind: cross_entropy}]"],
            "gradient_ratio_every_steps compares other objectives to cross_entropy",
        ),
        (["train.gradient_ratio_every_steps=5", "objectives=[{kind: logits_kl}]"], "gradient_ratio_every_steps compares"),
        (["tracking={project: ''}"], "tracking.project: String should have at least 1 character"),
        (["tracking={project: x, mode: disabled}"], "tracking.mode: Input should be 'auto', 'offline' or 'online'"),
        (["objectives=[{kind: cross_entropy, weight: 0}]", "teacher=null"], "every objective has weight 0"),
        (["objectives=[{kind: certainty}]", "teacher=null"], "certainty sharpens what is right and teaches nothing: add"),
        (["objectives.0.weight={start: -1.0, end: 1.0}"], "start: Input should be greater than or equal to 0"),
        (["objectives.1.weight=-10"], "weight.*greater than or equal to 0"),
        (
            ["train.learned=norms", "train.optimizer={kind: muon, learning_rate: 0.01}"],
            "optimizer muon is for matrices of layers, and learned is norms",
        ),
        (["train.gradient_clip=1.0"], "train.gradient_clip: unknown key"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*overrides)


def test_the_kind_of_an_optimizer_and_of_clipping_may_be_left_out() -> None:
    assert isinstance(parse().train.optimizer, AdamW)
    assert parse("train.clipping.max_norm=0.5").train.clipping.max_norm == 0.5
    assert isinstance(parse("train.optimizer.kind=muon").train.optimizer, Muon)
    assert isinstance(parse("train.optimizer.kind=muon_clip").train.optimizer, MuonClip)
    assert isinstance(parse("train.clipping.kind=zclip").train.clipping, ZClip)


def test_budgets_at_their_limits_are_allowed() -> None:
    assert parse("quantization={schedule: linear, warmup_tokens: 99000}").num_steps == 100
    parse(STOP % (24_000, 3))
    parse("train.clipping={kind: zclip, warmup_steps: 99}", "train.schedule={shape: wsd, warmup_fraction: 0.5, decay_fraction: 0.5}")
