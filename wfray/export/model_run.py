"""An exported directory in transformers, or an exported student in this project, with what its projections read."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from wfray.config.export import HuggingFace
from wfray.export.engine import HEAD, Seen
from wfray.export.reference import training_logits
from wfray.export.rounding import PER_TOKEN, Rounding, exact
from wfray.student import load_student
from wfray.student.families import PROJECTIONS


class ModelRun:
    """A model in this process; implements `Engine`."""

    rounding: Rounding = PER_TOKEN
    head_rounding: Rounding = staticmethod(exact)
    embedding_type = "F32"

    def __init__(self, model: PreTrainedModel, logits: Callable[[list[int]], Tensor]) -> None:
        """Watch `model`, whose logits [T, V] of one sequence `logits` gives."""
        self.logits = logits
        self.inputs: dict[str, Tensor] = {}
        for index, layer in enumerate(decoder_layers_of(model)):
            for name, module in layer.named_modules():
                if (projection := name.split(".")[-1]) in PROJECTIONS:
                    self.watch(module, f"{index}.{projection}")

    def watch(self, projection: nn.Module, key: str) -> None:
        """Keep what a projection reads, after its own norm where it has one."""

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            self.inputs[key] = (args[0] if output is None else output)[0]

        norm = getattr(projection, "norm", None)
        if norm is None:
            projection.register_forward_pre_hook(keep)
        else:
            norm.register_forward_hook(keep)

    @torch.no_grad()
    def run(self, input_ids: list[int]) -> Seen:
        """Evaluate one sequence; see `Engine`. What transformers compiles is run as it is, which computes the same."""
        with torch.compiler.set_stance("force_eager"):
            logits_TV = self.logits(input_ids)
        return Seen(logits_TV, {**self.inputs, HEAD: torch.zeros(len(input_ids), 0)})

    def close(self) -> None:
        """Let go of the model."""
        del self.logits


def decoder_layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a model of any class that is exported."""
    return list(model.get_submodule("model.layers").children())


def open_directory(target: Path, wanted: HuggingFace) -> ModelRun:
    """The engine of an exported directory, float32. The code that it may hold is what this project has just written there."""
    if wanted.form == "latent":
        student = load_student(target / "student")
        return ModelRun(student, lambda input_ids: training_logits(student, [input_ids]))
    own = (target / "modeling_wrinklefree.py").exists()
    with torch.compiler.set_stance("force_eager"):
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, trust_remote_code=own).eval()
    return ModelRun(model, lambda input_ids: model(torch.tensor([input_ids])).logits[0])
