"""Export: the student becomes `model.gguf`, proved against the training model and measured against the original as F16.

ray job submit --working-dir . -- python -m jobs.export --config configs/export/smollm2_135m.yaml run=$PWD/runs/mine
"""

from typing import TYPE_CHECKING, Any, cast

from actors.connection import connect
from actors.remote import Remote
from jobs.cli import run_job
from wfray.config.export import ExportConfig
from wfray.runs import Stage, write_aside
from wfray.runs.metrics import MetricsLog

if TYPE_CHECKING:
    from actors.exporter import Exporter


def main(config: ExportConfig) -> None:
    """Write, prove, measure; a file that misses its bounds is not kept."""
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done in {stage.directory}")
        return
    connect()
    with stage, stage.metrics() as metrics:
        exporter = cast("Exporter", Remote("actors.exporter:Exporter", config, num_cpus=config.num_cpus))
        stage.figures["model"] = export_student(config, stage, exporter, metrics)
        if config.original is not None:
            metrics.write(progress=0.7, message="writing the original as F16")
            stage.figures["original"] = export_original(stage, exporter)
        metrics.write(progress=1.0, message="done")
    print(summary(config, stage.figures))


def export_student(config: ExportConfig, stage: Stage, exporter: "Exporter", metrics: MetricsLog) -> dict[str, Any]:
    """`model.gguf` and its figures."""
    student, target = stage.inputs["student"] / "student", stage.directory / "model.gguf"
    with write_aside(target) as aside:
        metrics.write(progress=0.0, message=f"writing {target.name} as {config.linear_type}")
        figures = exporter.write_student(student, aside)
        metrics.write(progress=0.1, message=f"comparing {config.parity.sequences} held-out sequences in llama.cpp")
        figures["parity"] = exporter.prove(student, aside, stage.inputs["corpus"] / "corpus")
    metrics.write(progress=0.5, message="measuring its speed")
    figures["speed"] = exporter.measure_speed(target)
    stage.add_output(target)
    return {"linear_type": config.linear_type, "embedding_type": config.embedding_type, **figures}


def export_original(stage: Stage, exporter: "Exporter") -> dict[str, Any]:
    """`original.gguf` and its figures."""
    target = stage.directory / "original.gguf"
    with write_aside(target) as aside:
        figures = exporter.write_original(stage.inputs["original"] / "original", aside)
    figures["speed"] = exporter.measure_speed(target)
    stage.add_output(target)
    return figures


def summary(config: ExportConfig, figures: dict[str, Any]) -> str:
    """What a person wants to know, in a few lines."""
    model, parity = figures["model"], figures["model"]["parity"]
    lines = [
        f"{config.stage}: linear layers as {model['linear_type']}, {model['bytes_per_linear_weight'] * 8:.2f} bits a weight",
        f"parity over {parity['num_tokens']} tokens: top-1 {parity['top1_agreement']:.4f}, mean KL {parity['mean_kl']:.1e} "
        f"(rounded activations alone {parity['rounding_kl']:.1e}), perplexity {parity['perplexity_file']:.2f} in the file, "
        f"{parity['perplexity_training']:.2f} in training",
    ]
    for name, file in figures.items():
        size, speed = file["num_bytes"] / 1e6, file["speed"]
        lines.append(f"{name}: {size:.1f} MB, prefill {speed['prefill']:.0f} and decoding {speed['decode']:.0f} tokens/s")
    return "\n".join(lines)


if __name__ == "__main__":
    run_job(ExportConfig, main)
