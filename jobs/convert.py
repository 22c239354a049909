"""Stage 1: a full-precision checkpoint becomes a student of ternary linear layers.

ray job submit --working-dir . -- python -m jobs.convert --config configs/convert/smollm2_135m.yaml run=$PWD/runs/mine
"""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from jobs.cli import run_job
from wfray.config.convert import ConvertConfig
from wfray.data.shards import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.runs import Stage, resolve_home, write_aside
from wfray.student import convert, hidden_states, load_original, materialize, save_student
from wfray.student.convert import measure_input_rms
from wfray.train.feed import as_tensors


def main(config: ConvertConfig) -> None:
    """Fetch, calibrate, convert, save; the original is kept beside the student."""
    stage = Stage.of(config)
    if stage.done:
        print(f"{config.stage}: already done in {stage.directory}")
        return
    with stage, stage.metrics() as metrics:
        metrics.write(progress=0.1, message="reading the original")
        source = materialize(config.model, resolve_home(config.models))
        with write_aside(stage.directory / "original") as aside:
            shutil.copytree(source, aside)
        model = load_original(source, torch.float32)
        metrics.write(progress=0.6, message="calibrating")
        corpus = stage.inputs["corpus"] / "corpus" if config.corpus else None
        input_rms = calibrate(config, model, corpus) if corpus and config.subln.init == "calibrated" else None
        student = convert(model, config.subln, input_rms)
        with write_aside(stage.directory / "student") as aside:
            save_student(student, aside, tokenizer_from=source)
        stage.figures = {"num_parameters": sum(p.numel() for p in student.parameters()), "input_rms": input_rms or {}}
        stage.add_output(stage.directory / "original")
        stage.add_output(stage.directory / "student")
    print(f"{config.stage}: student of {stage.figures['num_parameters']:,} parameters in {stage.directory / 'student'}")


def calibrate(config: ConvertConfig, model: PreTrainedModel, corpus: Path) -> dict[str, float]:
    """Root mean squares of the projections' inputs on rows of the training mix."""
    packed = PackedCorpus(corpus)
    rows = max(1, config.calibration_tokens // packed.index.sequence_length)
    batch = as_tensors(MixedStream(packed, "train", seed=0).take(rows), slice(None))
    return measure_input_rms(model, config.subln, lambda: hidden_states(model, batch))


if __name__ == "__main__":
    run_job(ConvertConfig, main)
