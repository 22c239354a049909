"""What may be exported at all: a student whose training has reached ternary weights."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from wfray.student.checkpoint import student_description


def finished_student(config: PretrainedConfig, student: Path, purpose: str, placements: tuple[str, ...] = ("output",)) -> dict[str, Any]:
    """The `wrinklefree` entry of a student's configuration.

    Args:
        config: of the student.
        student: its directory.
        purpose: what the caller is about to write, for error messages.
        placements: of SubLN that it can express.

    Raises:
        ValueError: it is no student, a block-diffusion one, its weights are not ternary, or it has a SubLN where the format has none.
    """
    described = student_description(config, student)
    if "diffusion" in described:
        raise ValueError(
            f"{purpose}: {str(student)!r} writes a block at a time, but every engine of this format would run it token by token; "
            "serve it with engine: diffusion, or export the student that it was made from"
        )
    strength, placement = described["quantization_lambda"], described["subln"]["placement"]
    if strength == 0.0:
        raise ValueError(
            f"{purpose}: {str(student)!r} was trained with quantization off (lambda 0), so it has no ternary weights; train it with "
            "quantization.schedule other than none"
        )
    if strength != 1.0:
        raise ValueError(f"{purpose}: {str(student)!r} stopped at lambda {strength}, so it is not ternary yet; train on until lambda is 1")
    if placement not in placements:
        raise ValueError(
            f"{purpose}: {str(student)!r} has SubLN placement {placement!r}, but the format norms those of o_proj and down_proj "
            "alone; convert with subln.placement=output, or export {kind: huggingface}"
        )
    return described
