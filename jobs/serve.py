"""Serving: an OpenAI-compatible Ray Serve application, which outlives this job, and its answers to a few prompts.

ray job submit --working-dir . -- python -m jobs.serve --config configs/serve/quickstart.yaml run=$PWD/runs/mine
"""

import statistics
from pathlib import Path
from typing import Any

from actors.connection import connect
from actors.server import base_url, deploy, is_running, read_keys
from jobs.cli import run_job
from wfray.config.serve import ServeConfig, ServedModel
from wfray.runs import Manifest, MetricsLog, Stage, write_json
from wfray.serving.probe import Sample, ask


def main(config: ServeConfig) -> None:
    """Deploy, ask, record. A stage that is done is deployed again where its application is not running as it says."""
    stage = Stage.of(config)
    connect()
    files = {model.name: model_file(stage.inputs[model.name], model) for model in config.models}
    if stage.done and is_running(config, files):
        print(f"{config.stage}: already running at {base_url(config)}/v1")
        return
    with stage, stage.metrics() as metrics:
        metrics.write(progress=0.0, message="deploying")
        url = deploy(config, files)
        samples = ask_all(config, url, metrics)
        stage.figures = {"url": f"{url}/v1", "models": figures(samples)}
        write_json(stage.directory / "samples.json", [sample.model_dump() for sample in samples])
        stage.add_output(stage.directory / "samples.json")
    print(f"{config.stage}: {', '.join(model.name for model in config.models)} at {url}/v1")


def model_file(path: Path, model: ServedModel) -> Path:
    """The first format of an export stage where the engine takes a GGUF file, or the path itself.

    Raises:
        ValueError: that is no GGUF file.
    """
    if not path.is_dir() or model.engine not in ("llama_cpp", "bitnet_cpp"):
        return path
    manifest = Manifest.read(path)
    file = path / str(manifest.figures["model"]["path"] if manifest and "model" in manifest.figures else "model.gguf")
    if file.suffix != ".gguf" or not file.is_file():
        raise ValueError(
            f"model {model.name!r}: {str(file)!r} is no GGUF file, which {model.engine} takes: set its file, e.g. export/model.gguf"
        )
    return file


def ask_all(config: ServeConfig, url: str, metrics: MetricsLog) -> list[Sample]:
    """Every prompt to every model."""
    samples: list[Sample] = []
    key = next(iter(read_keys(config.api_keys_file)), None)
    wanted = [(prompt, model.name) for prompt in config.probes.prompts for model in config.models]
    for prompt, name in wanted:
        samples.append(ask(url, name, prompt, config.probes, key))
        metrics.write(progress=len(samples) / len(wanted), message=f"{name}: {prompt} -> {samples[-1].answer}")
        print(f"{name}: {prompt}\n  {samples[-1].answer}", flush=True)
    return samples


def figures(samples: list[Sample]) -> dict[str, Any]:
    """Medians by model."""
    names = sorted({sample.model for sample in samples})
    by_model = {name: [sample for sample in samples if sample.model == name] for name in names}
    return {
        name: {
            "first_token_seconds": statistics.median(sample.first_token_seconds for sample in own),
            "tokens_per_second": statistics.median(sample.tokens_per_second for sample in own),
        }
        for name, own in by_model.items()
    }


if __name__ == "__main__":
    run_job(ServeConfig, main)
