"""A plain, slow decoder of all families, written from their papers: float64, one document, one token and one head at a time.

It reads nothing of a model but its configuration and tensors, and shares no code with transformers or with this package.
"""

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Reference:
    """One model. With `subln_eps` the projections are those of a student: SubLN where a weight is stored, int8 by ternary products."""

    def __init__(self, config: Any, tensors: Tensors, subln_eps: float | None = None) -> None:
        self.config, self.subln_eps = config, subln_eps
        self.tensors = {name: tensor.detach().double() for name, tensor in tensors.items()}
        self.is_gemma = config.model_type == "gemma3_text"

    def hidden(self, input_ids: list[int]) -> Tensor:
        """The final norm's output [T, C] on one document."""
        scale = math.sqrt(self.config.hidden_size) if self.is_gemma else 1.0
        tokens = [self.tensors["model.embed_tokens.weight"][token] * scale for token in input_ids]
        for index in range(self.config.num_hidden_layers):
            tokens = self.layer(index, tokens)
        return torch.stack([self.norm("model.norm", x) for x in tokens])

    def logits(self, input_ids: list[int]) -> Tensor:
        """[T, V]."""
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        return torch.stack([head @ x for x in self.hidden(input_ids)])

    def layer(self, index: int, tokens: list[Tensor]) -> list[Tensor]:
        name = f"model.layers.{index}"
        mixed = self.attention(index, [self.norm(f"{name}.input_layernorm", x) for x in tokens])
        if not self.is_gemma:
            tokens = [x + y for x, y in zip(tokens, mixed, strict=True)]
            return [x + self.mlp(name, self.norm(f"{name}.post_attention_layernorm", x)) for x in tokens]
        tokens = [x + self.norm(f"{name}.post_attention_layernorm", y) for x, y in zip(tokens, mixed, strict=True)]
        inner = [self.mlp(name, self.norm(f"{name}.pre_feedforward_layernorm", x)) for x in tokens]
        return [x + self.norm(f"{name}.post_feedforward_layernorm", y) for x, y in zip(tokens, inner, strict=True)]

    def attention(self, index: int, tokens: list[Tensor]) -> list[Tensor]:
        name, config = f"model.layers.{index}.self_attn", self.config
        heads, groups = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
        width = config.head_dim
        scale = config.query_pre_attn_scalar**-0.5 if self.is_gemma else width**-0.5
        queries, keys, values = (
            [self.linear(f"{name}.{projection}", x).view(-1, width) for x in tokens] for projection in ("q_proj", "k_proj", "v_proj")
        )
        if f"{name}.q_norm.weight" in self.tensors:
            queries = [torch.stack([self.norm(f"{name}.q_norm", head) for head in query]) for query in queries]
            keys = [torch.stack([self.norm(f"{name}.k_norm", head) for head in key]) for key in keys]
        base, window = self.rope_base(index), self.window(index)
        queries = [rotate(query, position, base) for position, query in enumerate(queries)]
        keys = [rotate(key, position, base) for position, key in enumerate(keys)]
        outputs = []
        for position, query in enumerate(queries):
            first = max(0, position - window + 1) if window else 0
            mixed = []
            for head in range(heads):
                scores = torch.stack([query[head] @ key[head // groups] * scale for key in keys[first : position + 1]])
                weights = scores.softmax(0)
                mixed.append(sum(w * value[head // groups] for w, value in zip(weights, values[first : position + 1], strict=True)))
            outputs.append(self.linear(f"{name}.o_proj", torch.cat(mixed)))
        return outputs

    def mlp(self, layer: str, x: Tensor) -> Tensor:
        gate = self.linear(f"{layer}.mlp.gate_proj", x)
        if self.is_gemma:
            active = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            active = gate / (1 + torch.exp(-gate))
        return self.linear(f"{layer}.mlp.down_proj", active * self.linear(f"{layer}.mlp.up_proj", x))

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias", 0.0)
        if self.subln_eps is None:
            return weight @ x + bias
        if f"{name}.norm.weight" in self.tensors:
            x = x / (x.square().mean() + self.subln_eps).sqrt() * self.tensors[f"{name}.norm.weight"]
        scale, largest = weight.abs().mean(), x.abs().max()
        ternary = scale * (weight / (scale + 1e-5)).round().clamp(-1, 1)
        return ternary @ (largest / 127 * (127 / (largest + 1e-5) * x).round().clamp(-128, 127)) + bias

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensors[f"{name}.weight"] + (1.0 if self.is_gemma else 0.0)
        return x / (x.square().mean() + self.config.rms_norm_eps).sqrt() * weight

    def rope_base(self, index: int) -> float:
        rope = self.config.rope_parameters
        return (rope[self.config.layer_types[index]] if self.is_gemma else rope)["rope_theta"]

    def window(self, index: int) -> int | None:
        if self.config.model_type == "mistral":
            return self.config.sliding_window
        sliding = getattr(self.config, "layer_types", None) and self.config.layer_types[index] == "sliding_attention"
        return self.config.sliding_window if sliding else None


def rotate(heads: Tensor, position: int, base: float) -> Tensor:
    """RoPE on each head [heads, head_dim]: channel i turns with channel i + head_dim / 2 by position / base^(2 i / head_dim)."""
    width = heads.shape[-1]
    rotated = torch.empty_like(heads)
    for i in range(width // 2):
        angle = position / base ** (2 * i / width)
        first, second = heads[:, i], heads[:, i + width // 2]
        rotated[:, i] = first * math.cos(angle) - second * math.sin(angle)
        rotated[:, i + width // 2] = second * math.cos(angle) + first * math.sin(angle)
    return rotated
