"""Our models as lm-eval sees them: registered model types, and the one that a subject of an evaluation is.

`wrinklefree`: a student directory. lm-eval pads and batches requests itself, so the student's attention is transformers' own here;
its ternary codes are computed once. `wrinklefree-gguf`: see `gguf_lm`. `wrinklefree-diffusion`: see `diffusion_lm`. The stock command knows
them where the task file
`wfray/evals/tasks/wrinklefree.yaml` is named among its tasks.
"""

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from wfray.config.evaluate import DiffusionSubject, EndpointSubject, EvaluateConfig, GGUFSubject, HubSubject, Subject
from wfray.data.tokenizer import load_directory_tokenizer
from wfray.evals.diffusion_lm import DiffusionLM, default_device
from wfray.evals.gguf_lm import GGUFLM
from wfray.quant import hold_codes
from wfray.quant.precision import resolved
from wfray.student import load_student


class StudentLM(HFLM):
    """A student directory; arguments but the first are HFLM's."""

    def __init__(self, pretrained: str, device: str | None = None, dtype: str | None = None, **arguments: Any) -> None:
        """Load the student in the directory `pretrained`; `dtype` bfloat16 is that of its products, its weights stay float32."""
        model = load_student(Path(pretrained))
        model.set_attn_implementation("sdpa")
        # lm-eval's command names cuda:0 unless told otherwise, and its own models take what there is.
        torch.nn.Module.to(model, device if device and torch.cuda.is_available() else default_device())
        hold_codes(model)
        precision = "bfloat16" if dtype == "bfloat16" else None
        tokenizer = load_directory_tokenizer(Path(pretrained))
        super().__init__(pretrained=model, tokenizer=tokenizer, mixed_precision_dtype=precision, **arguments)


def register() -> None:
    """Make the model types known to lm-eval, once."""
    for name, model in {"wrinklefree": StudentLM, "wrinklefree-gguf": GGUFLM, "wrinklefree-diffusion": DiffusionLM}.items():
        if name not in model_registry:
            model_registry.register(name, target=model)


register()


def open_lm(config: EvaluateConfig, name: str, path: Path | None) -> LM:
    """The subject `name` of an evaluation as lm-eval's model.

    Args:
        config: the evaluation's.
        name: of the subject.
        path: of the stage or file that the subject refers to; None where it refers to none.
    """
    assert config.harness is not None
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    shared: dict[str, Any] = {"batch_size": config.harness.batch_size}
    floats: dict[str, Any] = {**shared, "dtype": resolved(config.precision), "device": default_device()}
    match next(subject for subject in config.subjects if subject.name == name):
        case Subject(kind="student"):
            return StudentLM(str(path / "student" if path else ""), **floats)
        case Subject(kind="original"):
            return HFLM(str(path / "original" if path else ""), **floats)
        case DiffusionSubject() as subject:
            settings = subject.model_dump(include={"samples", "seed", "threshold", "block_size"})
            return DiffusionLM(str(path / "student" if path else ""), **settings, **floats)
        case HubSubject(id=id, revision=revision):
            return HFLM(id, revision=revision, **floats)
        case GGUFSubject(context=context):
            return GGUFLM(str(path), context=context, threads=config.threads, **shared)
        case EndpointSubject() as endpoint:
            return open_endpoint(endpoint)
    raise AssertionError("unreachable")


def open_endpoint(endpoint: EndpointSubject) -> LM:
    """A client of the OpenAI API."""
    kind, path = (LocalChatCompletion, "chat/completions") if endpoint.chat else (LocalCompletionsAPI, "completions")
    tokens = {} if endpoint.chat else {"tokenizer": endpoint.tokenizer, "tokenizer_backend": "huggingface"}
    return kind(base_url=f"{endpoint.url}/{path}", model=endpoint.model, num_concurrent=endpoint.concurrent, **tokens)
