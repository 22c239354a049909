"""Export: the student in every format asked for, each proved against the training model, and the original as F16 to measure against.

ray job submit --working-dir . -- python -m jobs.export --config configs/export/smollm2_135m.yaml run=$PWD/runs/mine
"""

from typing import TYPE_CHECKING, Any, cast

from actors.connection import connect
from actors.remote import Remote
from jobs.cli import run_job
from wfray.config.export import ExportConfig, Format
from wfray.runs import Stage, write_aside

if TYPE_CHECKING:
    from actors.exporter import Exporter


def main(config: ExportConfig) -> None:
    """Write, prove, measure; what misses its bounds is not kept."""
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done in {stage.directory}")
        return
    connect()
    with stage:
        stage.clear()
        export(config, stage)


def export(config: ExportConfig, stage: Stage) -> None:
    """Every format, and the original beside them."""
    with stage.metrics() as metrics:
        exporter = cast("Exporter", Remote("actors.exporter:Exporter", config, num_cpus=config.num_cpus))
        written = {}
        for number, wanted in enumerate(config.formats):
            metrics.write(progress=0.9 * number / len(config.formats), message=f"writing and proving {wanted.path}")
            written[wanted.path] = export_student(wanted, stage, exporter)
            print(summary(wanted.path, written[wanted.path]), flush=True)
        stage.figures["model"], *stage.figures["others"] = written.values()
        if config.original is not None:
            metrics.write(progress=0.9, message="writing the original as F16")
            stage.figures["original"] = export_original(stage, exporter)
            print(summary("original.gguf", stage.figures["original"]), flush=True)
        metrics.write(progress=1.0, message="done")


def export_student(wanted: Format, stage: Stage, exporter: "Exporter") -> dict[str, Any]:
    """One format's output and its figures."""
    student, target = stage.inputs["student"] / "student", stage.directory / wanted.path
    with write_aside(target) as aside:
        figures = exporter.write_student(student, aside, wanted)
        figures["parity"] = exporter.prove(student, aside, wanted, stage.inputs["corpus"] / "corpus")
    stage.add_output(target)
    return {**wanted.model_dump(), **figures, **exporter.measure_speed(target, wanted)}


def export_original(stage: Stage, exporter: "Exporter") -> dict[str, Any]:
    """`original.gguf` and its figures."""
    target = stage.directory / "original.gguf"
    with write_aside(target) as aside:
        figures = exporter.write_original(stage.inputs["original"] / "original", aside)
    stage.add_output(target)
    return {**figures, **exporter.measure_speed(target, None)}


def summary(name: str, figures: dict[str, Any]) -> str:
    """What a person wants to know of one output, in a line or two."""
    parts = [f"{name}: {figures['num_bytes'] / 1e6:.1f} MB"]
    if "bytes_per_linear_weight" in figures:
        parts.append(f"linear layers {figures['bytes_per_linear_weight'] * 8:.2f} bits a weight")
    if speed := figures.get("speed"):
        parts.append(f"prefill {speed['prefill']:.0f} and decoding {speed['decode']:.0f} tokens/s")
    if parity := figures.get("parity"):
        parts.append(
            f"parity over {parity['num_tokens']} tokens: top-1 {parity['top1_agreement']:.4f}, mean KL {parity['mean_kl']:.1e}, max "
            f"{parity['max_kl']:.1e}, perplexity {parity['perplexity_file']:.2f}, {parity['perplexity_training']:.2f} in training (against "
            f"the training model's own rounding: top-1 {parity['own_top1_agreement']:.4f}, mean KL {parity['own_mean_kl']:.1e})"
        )
    return ", ".join(parts)


if __name__ == "__main__":
    run_job(ExportConfig, main)
