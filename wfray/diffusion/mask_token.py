"""The mask token: one more special token of the tokenizer and one more row of the embedding, at the mean of the vocabulary.

A random row is an outlier among trained ones, which ruins the int8 scale of every token that it stands beside. Where the embedding is
padded beyond the tokenizer's tokens, the first free row becomes the mask's; else a row is added, and to an untied LM head as well.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def add_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Give both a mask token; returns its id.

    Raises:
        ValueError: the text of `token` is one of the vocabulary already.
    """
    if token in tokenizer.get_vocab():
        raise ValueError(f"mask_token {token!r} is a token of the model's vocabulary already: choose another text for it")
    mask_id = len(tokenizer)
    tokenizer.add_special_tokens({"mask_token": token})
    if mask_id >= model.config.vocab_size:
        model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = table.weight
        assert isinstance(weight, torch.Tensor)
        with torch.no_grad():
            weight[mask_id] = weight[:mask_id].mean(dim=0)
    return mask_id
