"""Held-out cross-entropy in nats a token, and its exponential, the perplexity.

The LM head's product is taken chunk by chunk of tokens, so no [tokens, vocabulary] tensor exists; what is kept of a chunk is
one float64 sum. Sums of batches add up exactly as if they had been one, so a score does not depend on how rows are batched
beyond the rounding of the products.
"""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wfray.evals.scores import Score
from wfray.objectives.linear_losses import linear_losses
from wfray.student import hidden_states, lm_head_weight


@torch.no_grad()
def score_batch(model: PreTrainedModel, batch: dict[str, Tensor], dtype: torch.dtype) -> Score:
    """Score one packed batch.

    Args:
        model: a student or an original, with float32 weights.
        batch: `input_ids`, `targets`, `position_ids`, `segment_ids`, each [B, S].
        dtype: of the products, by autocast; float32 switches it off.

    Raises:
        ValueError: the batch has no token to predict, or the loss is not finite.
    """
    targets_T = batch["targets"].flatten()
    num_tokens = int((targets_T != -100).sum())
    if num_tokens == 0:
        raise ValueError("the batch has no token to predict: every document in it is a single token")
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden_TC = hidden_states(model, batch).flatten(0, 1)
        head_VC = lm_head_weight(model).detach()
        losses = linear_losses(hidden_TC, head_VC, targets_T, 1, ce_weight=1.0, dtype=dtype)
    if not math.isfinite(losses.cross_entropy):
        raise ValueError(f"the model's loss on held-out text is {losses.cross_entropy}: its weights are broken; train it again")
    return Score(num_tokens=num_tokens, sum_nats=losses.cross_entropy)
