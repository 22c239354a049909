"""Stage 1: a full-precision checkpoint becomes a student of ternary linear layers.

ray job submit --working-dir . -- python -m jobs.convert --config configs/convert/smollm2_135m.yaml run=$PWD/runs/mine

The original is held in bfloat16 (in float32 on a CPU that does not multiply bfloat16), and the student's latent weights are written in
float32, shard by shard: a model of 4 billion weights needs 8 GB of memory and a shard, and 16 GB of disk for the student.
"""

import shutil

import torch

from jobs.cli import run_job
from wfray.config.convert import Compensated, ConvertConfig
from wfray.quant.precision import dtype_of
from wfray.runs import Stage, resolve_home, write_aside
from wfray.student import calibrate, calibration_rows, compensate, convert, load_original, materialize, save_student


def main(config: ConvertConfig) -> None:
    """Fetch, calibrate, convert, save; the original is kept beside the student."""
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done in {stage.directory}")
        return
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with stage, stage.metrics() as metrics:
        metrics.write(progress=0.1, message="reading the original")
        source = materialize(config.model, resolve_home(config.models))
        with write_aside(stage.directory / "original") as aside:
            shutil.copytree(source, aside)
        model = load_original(source, dtype_of("auto"))
        input_rms = None
        if config.calibrates:
            metrics.write(progress=0.2, message="calibrating")
            input_rms = calibrate(model, config.subln, stage.inputs["corpus"] / "corpus", config.calibration_tokens)
        student = convert(model, config.subln, input_rms)
        drifts = []
        if isinstance(config.rounding, Compensated):
            rows = list(calibration_rows(stage.inputs["corpus"] / "corpus", config.rounding.tokens, config.rounding.piece_tokens))
            student.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]

            def report(layers_done: int, num_layers: int, drift: float) -> None:
                progress = 0.2 + 0.6 * layers_done / num_layers
                metrics.write(progress=progress, message=f"layer {layers_done} of {num_layers} rounded", layer=layers_done - 1, drift=drift)

            drifts = compensate(student, rows, config.rounding, report)
        metrics.write(progress=0.8, message="writing the student")
        with write_aside(stage.directory / "student") as aside:
            save_student(student, aside, tokenizer_from=source)
        stage.figures = {"num_parameters": sum(p.numel() for p in student.parameters()), "input_rms": input_rms or {}, "drifts": drifts}
        stage.add_output(stage.directory / "original")
        stage.add_output(stage.directory / "student")
    print(f"{config.stage}: student of {stage.figures['num_parameters']:,} parameters in {stage.directory / 'student'}")


if __name__ == "__main__":
    run_job(ConvertConfig, main)
