"""The optimizers of a student, over float32 master weights; matrices decay, norms and biases do not.

Muon (Jordan et al. 2024) replaces the momentum M of a matrix by the nearest orthogonal one, U V^T of its singular value decomposition, by
five steps of a quintic Newton-Schulz iteration in bfloat16: `X <- aX + (bA + cA^2)X` with `A = X X^T`. The singular values end
between about 0.7 and 1.2. It takes the matrices of the decoder layers; embeddings, LM head, norms and biases stay with AdamW.

All states are created at once, so that a checkpoint can be loaded into them. They lie in `optimizer.state[parameter]`, where
the weights' moving average is kept too: what is there is saved, sharded and restored with the weights.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wfray.config.optimizer import AdamW, AdamWSettings, MuonSettings
from wfray.config.train import Learned, Training
from wfray.quant import bit_linears
from wfray.student.families import decoder_layers
from wfray.train.average import start_average

RELATIVE_RATE = "relative_rate"
"""Of a group, where it is not 1: its learning rate over that of the others."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers of torch that step as one: they share the dictionary of states and their groups."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts = (muon, adamw)
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both."""
        for part in self.parts:
            part.step()


def freeze(model: PreTrainedModel, learned: Learned) -> None:
    """Let only those parameters have gradients that `learned` names."""
    ternary = {layer.weight for layer in bit_linears(model)}
    for parameter in model.parameters():
        is_learned = {"all": True, "norms": parameter.ndim < 2, "unquantized": parameter not in ternary}
        parameter.requires_grad_(is_learned[learned])


def make_optimizer(model: PreTrainedModel, train: Training) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names, with its states and, where it is on, the average of the weights."""
    config = train.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_adamw(model, parameters, config) if isinstance(config, AdamW) else make_muon(model, parameters, config)
    if train.average:
        start_average(optimizer)
    return optimizer


def make_adamw(model: PreTrainedModel, parameters: Iterable[nn.Parameter], config: AdamWSettings) -> torch.optim.AdamW:
    """AdamW with three groups: matrices, embedding and LM head, the rest."""
    listed = list(parameters)
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    rate = config.embedding_learning_rate or config.learning_rate
    of_tables = {"weight_decay": config.weight_decay, "lr": rate, RELATIVE_RATE: rate / config.learning_rate}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in listed if p.ndim >= 2 and p not in tables], "weight_decay": config.weight_decay},
        {"params": [p for p in listed if p in tables], **of_tables},
        {"params": [p for p in listed if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    for parameter in listed:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def make_muon(model: PreTrainedModel, parameters: Iterable[nn.Parameter], config: MuonSettings) -> MuonWithAdamW:
    """Muon for the matrices of the decoder layers, AdamW for the rest."""
    matrices = [parameter for parameter in decoder_layers(model).parameters() if parameter.ndim == 2 and parameter.requires_grad]
    chosen = set(matrices)
    adamw = make_adamw(model, (parameter for parameter in parameters if parameter not in chosen), config)
    muon = torch.optim.Muon(
        matrices,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        ns_steps=config.newton_schulz_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    states: dict[Tensor, dict[str, Tensor]] = {**adamw.state, **{p: {"momentum_buffer": torch.zeros_like(p)} for p in matrices}}
    optimizer = MuonWithAdamW(muon, adamw)
    optimizer.state.update(states)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, that of embedding and LM head in its proportion."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RELATIVE_RATE, 1.0)
