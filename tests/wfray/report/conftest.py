"""A realistic run directory, written through the same classes as a real one."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from wfray.config.base import StageConfig
from wfray.config.convert import ConvertConfig
from wfray.config.data import PackConfig
from wfray.config.evaluate import EvaluateConfig
from wfray.config.export import ExportConfig
from wfray.config.serve import ServeConfig
from wfray.config.train import TrainConfig
from wfray.evals import Continuation, Score, Scores, SubjectScores
from wfray.runs import Manifest, Stage, write_json

CONFIGS = Path(__file__).parents[3] / "configs"
SUBJECTS = {"teacher": 2.47, "converted": 11.91, "aligned": 5.62, "pretrained": 4.91, "distilled": 4.37}
SOURCES = {"encyclopedia": 0.12, "speeches": 0.31, "code": -0.44}
ANSWER = "The capital of France is <b>Paris</b> & nothing else."
SECONDS = {
    "pack": 21.4,
    "convert": 33.9,
    "align": 131.2,
    "pretrain": 118.6,
    "distill": 187.3,
    "export": 74.8,
    "evaluate": 58.1,
    "serve": 16.2,
}


class RunWriter:
    """Writes stages of the quickstart into a run directory."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def write(
        self, config_type: type[Any], file: str, figures: dict[str, Any], rows: list[dict[str, Any]] | None = None, **outputs: str
    ) -> None:
        """One complete stage; `outputs` are names and contents of files that it made."""
        config = config_type.load(CONFIGS / file, [f"run={self.run}"])
        parents = config.parents if isinstance(config, StageConfig) else {}
        with Stage(config.run, config.stage, config, parents) as stage, stage.metrics() as metrics:
            for row in rows or [{"progress": 1.0, "message": "done"}]:
                metrics.write(**row)
            for name, text in outputs.items():
                path = stage.directory / name.replace("__", ".")
                path.write_text(text)
                stage.add_output(path)
            stage.figures = figures
        self.set_time(config.stage)

    def set_time(self, stage: str) -> None:
        """Give a stage the wall time that it would have had."""
        manifest = Manifest.read(self.run / stage)
        assert manifest is not None
        timed = manifest.model_copy(update={"wall_seconds": SECONDS[stage]})
        write_json(self.run / stage / "manifest.json", timed.model_dump(mode="json"))

    def pack(self) -> None:
        def source(licence: str, weight: float, documents: int, tokens: int) -> dict[str, Any]:
            split = {"cut_documents": 3, "padding": 100, "fill": 0.9934}
            train = {"documents": documents, "rows": tokens // 512, "tokens": tokens, **split}
            return {"licence": licence, "weight": weight, "train": train, "heldout": {"documents": 44, "rows": 16, "tokens": 8192, **split}}

        sources = {
            "encyclopedia": source("CC-BY-SA-4.0", 0.5, 3127, 1_203_712),
            "speeches": source("MIT", 0.25, 229, 803_840),
            "code": source("PSF-2.0", 0.25, 611, 917_504),
        }
        self.write(PackConfig, "pack/quickstart.yaml", {"sources": sources, "tokens": 2_949_632, "seconds": 19.2}, corpus__json="{}")

    def convert(self) -> None:
        self.write(ConvertConfig, "convert/smollm2_135m.yaml", {"num_parameters": 134_578_944}, weights="latent")

    def train(self, stage: str, first: float, last: float, parts: dict[str, float]) -> None:
        random.seed(stage)
        num_steps, rows = 40, []
        for step in range(1, num_steps + 1):
            decay = math.exp(-3.5 * step / num_steps)
            ce = last + (first - last) * decay + random.gauss(0, 0.08)
            terms = {name: scale * (0.3 + 0.7 * decay) * random.uniform(0.95, 1.05) for name, scale in parts.items()}
            loss = ce + sum(terms.values())
            row = {"step": step, "num_steps": num_steps, "tokens": step * 2048, "loss": loss, "cross_entropy": ce, **terms}
            rate = 1e-3 * min(1, step / 4) * (1 - 0.9 * step / num_steps)
            row |= {"gradient_norm": 1.5 + decay * random.uniform(1, 3), "learning_rate": rate, "lambda": 1.0}
            row |= {"tokens_per_second": 731.4 + step % 3, "data_wait_fraction": 0.0012, "teacher_wait_fraction": 0.05}
            rows.append({**row, "progress": step / num_steps})
        self.write(TrainConfig, f"{stage}/quickstart.yaml", {"tokens": 81920, "steps": 40}, rows, weights=f"latent {stage}")

    def export(self) -> None:
        parity = {
            "num_sequences": 64,
            "num_tokens": 7731,
            "top1_agreement": 0.99612,
            "mean_kl": 2.13e-4,
            "max_kl": 0.0341,
            "perplexity_training": 80.14,
            "perplexity_file": 80.17,
            "own_top1_agreement": 0.9621,
            "own_mean_kl": 2.87e-3,
            "own_max_kl": 0.2,
            "num_tokens_tokenized": 9001,
        }
        model = {
            "path": "model.gguf",
            "linear_type": "Q4_0",
            "embedding_type": "F16",
            "num_bytes": 116_917_312,
            "linear_bytes": 59_719_680,
            "num_linear_weights": 106_168_320,
            "hidden": 576,
            "hidden_stored": 576,
            "bytes_per_linear_weight": 0.5625,
            "parity": parity,
            "speed": {"prefill": 713.2, "decode": 219.6},
        }
        original = {"num_bytes": 270_885_696, "speed": {"prefill": 402.8, "decode": 131.3}}
        other = {"path": "model-i2_s.gguf", "layout": "x86", "num_bytes": 81_234_567, "bytes_per_linear_weight": 0.25}
        other |= {"num_linear_weights": 106_168_320, "linear_bytes": 26_542_080, "parity": parity}
        figures = {"model": model, "others": [other], "original": original}
        self.write(ExportConfig, "export/smollm2_135m.yaml", figures, model__gguf="GGUF", original__gguf="GGUF16")

    def evaluate(self) -> None:
        subjects = [
            SubjectScores(
                name=subject.name,
                kind=subject.kind,
                reference=subject.reference,
                sources={name: Score(num_tokens=4019, sum_nats=4019 * (SUBJECTS[subject.name] + shift)) for name, shift in SOURCES.items()},
            )
            for subject in EvaluateConfig.load(CONFIGS / "evaluate" / "quickstart.yaml").subjects
        ]
        continuation = Continuation(
            source="speeches",
            prompt="Mr. Speaker, Mr. President, and distinguished Members of the House and Senate: Less than",
            truth=" 3 weeks ago, I joined you on the West Front of this very building and looked over the monuments",
            answers={"teacher": " a year ago, the American people", "distilled": " the people of the people of the country"},
        )
        scores = Scores(precision="bfloat16", subjects=subjects, continuations=[continuation])
        self.write(EvaluateConfig, "evaluate/quickstart.yaml", scores.figures(), scores__json=json.dumps(scores.model_dump(mode="json")))

    def serve(self) -> None:
        config = ServeConfig.load(CONFIGS / "serve" / "quickstart.yaml")
        answers = {"ternary": ANSWER, "original": "The capital of France is Paris."}
        samples = [
            {
                "model": model.name,
                "prompt": prompt,
                "answer": answers[model.name],
                "finish_reason": "stop",
                "prompt_tokens": 37,
                "completion_tokens": 48,
                "first_token_seconds": 0.0612,
                "tokens_per_second": 187.3,
            }
            for prompt in config.probes.prompts
            for model in config.models
        ]
        figures = {"url": "http://127.0.0.1:8000/wrinklefree/v1", "models": {}}
        self.write(ServeConfig, "serve/quickstart.yaml", figures, samples__json=json.dumps(samples))

    def cost(self) -> None:
        cost = {"wall_seconds": 702.5, "peak_memory_bytes": 5_798_205_850, "all_stages": True, "max_minutes": 15.0, "max_memory_gb": 12.0}
        write_json(self.run / "pipeline.json", cost)

    def everything(self) -> None:
        """The whole quickstart."""
        self.pack()
        self.convert()
        self.train("align", 11.2, 5.7, {"alignment": 4.1})
        self.train("pretrain", 5.6, 4.95, {})
        self.train("distill", 4.9, 4.4, {"logits_kl": 2.35, "attention_relations": 0.0421})
        self.export()
        self.evaluate()
        self.serve()
        self.cost()


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything was done."""
    run = tmp_path_factory.mktemp("runs") / "quickstart"
    RunWriter(run).everything()
    return run


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """Writes single stages into an empty run."""
    return RunWriter(tmp_path / "partial")
