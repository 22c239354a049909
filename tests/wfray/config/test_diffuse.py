"""Mistakes in a block-diffusion stage are named with the mend."""

from pathlib import Path

import pytest

from wfray.config.diffuse import DiffuseConfig

TINY = Path(__file__).parents[3] / "configs/diffuse/tiny.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sub_block_size=3"], "sub_block_size 3 does not divide block_size 8"),
        (["block_size=1"], "block_size: Input should be greater than or equal to 2"),
        (["objectives.0.kind=alignment", "teacher={}"], "alignment compares states of the same tokens"),
        (["objectives.0.kind=logits_kl", "teacher={}"], "no mask token: set signal: topk"),
        (["train.optimizer.kind=muon_clip"], "muon_clip looks at causal attention.*: use muon or adamw"),
        (["train.compile=true"], "the number of noised blocks differs from batch to batch"),
        (["mixing={kind: odm, every_steps: 2}"], "mixing by influence or losses measures causal losses"),
        (["mask_token=''"], "mask_token"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffuseConfig.load(TINY, overrides)
