"""The training model as an engine would run it: its own ternary weights and float32, but activations rounded as the engine rounds them."""

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from wfray.export.engine import HEAD, Engine, Seen
from wfray.export.ggml import quantize_rows
from wfray.export.rounding import Rounding
from wfray.quant import BitLinear
from wfray.student import hidden_states, lm_head_weight
from wfray.student.families import decoder_layers, family_of, projections


class RoundedLinear(nn.Module):
    """A BitLinear's norm and ternary weights with another rounding of activations."""

    def __init__(self, layer: BitLinear, rounding: Rounding) -> None:
        super().__init__()
        self.codes_DC, self.scale = layer.ternary_weight()
        self.norm, self.bias, self.rounding = layer.norm, layer.bias, rounding
        self.seen_TC: Tensor | None = None
        """What the engine saw here."""

    def forward(self, x_1TC: Tensor) -> Tensor:
        x_TC = (x_1TC if self.norm is None else self.norm(x_1TC))[0]
        y_TD = functional.linear(self.rounding(x_TC, self.seen_TC), self.codes_DC.float()) * self.scale
        return (y_TD if self.bias is None else y_TD + self.bias)[None]


class Reference:
    """The training model in the rounding of an engine."""

    def __init__(self, student: PreTrainedModel, engine: Engine) -> None:
        """Take over `student`, whose BitLinear layers are replaced."""
        self.model, self.head_rounding = student, engine.head_rounding
        for weight in {student.get_input_embeddings().weight, student.get_output_embeddings().weight}:
            weight.data = as_stored(weight.data, engine.embedding_type)
        self.layers: dict[str, RoundedLinear] = {}
        for index, layer in enumerate(decoder_layers(student)):
            for parent, name in projections(layer, family_of(student.config)):
                rounded = RoundedLinear(getattr(parent, name), engine.rounding)
                setattr(parent, name, rounded)
                self.layers[f"{index}.{name}"] = rounded

    def logits(self, sequences: list[list[int]], seen: list[Seen]) -> Tensor:
        """Logits [T, V] of some sequences in a row, roundings decided as the engine decided them where that is valid here."""
        for key, layer in self.layers.items():
            layer.seen_TC = torch.cat([each.inputs[key][:, : layer.codes_DC.shape[1]] for each in seen])
        hidden_TC = hidden_states(self.model, documents(sequences))[0]
        seen_TC = torch.cat([each.inputs[HEAD][:, : hidden_TC.shape[1]] for each in seen])
        return self.head_rounding(hidden_TC, seen_TC) @ lm_head_weight(self.model).T


def as_stored(weight_VC: Tensor, stored: str) -> Tensor:
    """An embedding or head after it was stored in a type and read back."""
    if stored in ("F32", "F16"):
        return weight_VC if stored == "F32" else weight_VC.half().float()
    kind = GGMLQuantizationType[stored]
    block, _ = GGML_QUANT_SIZES[kind]
    padded_VC = functional.pad(weight_VC, (0, -weight_VC.shape[1] % block)).numpy()
    return torch.from_numpy(dequantize(quantize_rows(padded_VC, kind), kind))[:, : weight_VC.shape[1]].contiguous()


def training_logits(model: PreTrainedModel, sequences: list[list[int]]) -> Tensor:
    """A model's logits [T, V] of some sequences in a row."""
    return hidden_states(model, documents(sequences))[0] @ lm_head_weight(model).T


def documents(sequences: list[list[int]]) -> dict[str, Tensor]:
    """A batch of one row, in which each sequence is a document."""
    lengths = [len(sequence) for sequence in sequences]
    return {
        "input_ids": torch.tensor([[token for sequence in sequences for token in sequence]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "segment_ids": torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))[None],
    }
