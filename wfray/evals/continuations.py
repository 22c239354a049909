"""Texts written on from held-out prompts, greedily, so that the same model writes the same text."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from wfray.data.batch import PackedBatch


def heldout_prompts(batch: PackedBatch, num: int, prompt_tokens: int, new_tokens: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """The beginnings of the first `num` documents of a batch that are long enough, one a row at most.

    Returns:
        pairs of prompt [prompt_tokens] and true continuation [new_tokens]; fewer than `num` where documents are short.
    """
    found: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    for input_ids, segment_ids in zip(batch["input_ids"], batch["segment_ids"], strict=True):
        segments, starts, lengths = np.unique(segment_ids, return_index=True, return_counts=True)
        long_enough = starts[(segments > 0) & (lengths >= prompt_tokens + new_tokens)]
        if len(long_enough) and len(found) < num:
            document = input_ids[long_enough.min() :]
            found.append((document[:prompt_tokens], document[prompt_tokens : prompt_tokens + new_tokens]))
    return found


@torch.no_grad()
def continue_greedily(model: PreTrainedModel, prompt: NDArray[np.int32], new_tokens: int, dtype: torch.dtype) -> list[int]:
    """The likeliest next token, `new_tokens` times, with a key-value cache; the model's end-of-text tokens are no end here."""
    input_ids = torch.from_numpy(prompt.astype(np.int64))[None].to(model.device)
    positions, cache, chosen = torch.arange(len(prompt), device=model.device)[None], None, []
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for _ in range(new_tokens):
            output = model(input_ids=input_ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, input_ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(int(input_ids))
            positions = positions[:, -1:] + 1
    return chosen
