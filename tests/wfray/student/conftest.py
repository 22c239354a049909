import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wfray.student.attention import NAME

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}


WINDOW = 4
WINDOWED = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": WINDOW},
}
"""How a family says that layers have a sliding window; all but Mistral have one layer with and one without."""
FAMILY_OPTIONS = {
    "qwen2": {"use_sliding_window": False},
    "gemma3_text": {"query_pre_attn_scalar": 24, "sliding_window_pattern": 2},
}


def tiny_model(family: str, attention: str = NAME, **options: object) -> PreTrainedModel:
    """A random model whose q width (64) is not its hidden size (32)."""
    torch.manual_seed(0)
    options = {"sliding_window": None if family == "mistral" else 64, **FAMILY_OPTIONS.get(family, {}), **options}
    config = AutoConfig.for_model(family, **SHAPE, tie_word_embeddings=options.pop("tied", True), **options)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def rough_model(family: str, attention: str = NAME, **options: object) -> PreTrainedModel:
    """A tiny model whose norms' weights and biases, which start as ones and zeros, are random too."""
    model = tiny_model(family, attention, **options)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def packed() -> dict[str, torch.Tensor]:
    """Two rows: documents of 5 and 7 tokens, then one of 9 and padding of 3."""
    torch.manual_seed(1)
    lengths = [[5, 7], [9, 3]]
    return {
        "input_ids": torch.randint(1, 100, (2, 12)),
        "position_ids": torch.tensor([[i for n in row for i in range(n)] for row in lengths]),
        "segment_ids": torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3]),
    }
