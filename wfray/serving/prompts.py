"""A request's prompt as token ids, by a Hugging Face tokenizer."""

from transformers import PreTrainedTokenizerBase

from wfray.serving.answer import check_vocabulary
from wfray.serving.engine import Chat
from wfray.serving.templates import refusals


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int, prompt: str | list[int] | Chat) -> list[int]:
    """Token ids of a text, of token ids, or of a conversation; an empty one is the token that begins or ends a text.

    Raises:
        ValueError: a conversation for a model without a chat template or that the template refuses, or a token id outside the vocabulary.
    """
    if isinstance(prompt, str):
        tokens = tokenizer(prompt)["input_ids"]
    elif prompt and isinstance(prompt[0], dict):
        if tokenizer.chat_template is None:
            raise ValueError("this model has no chat template: use /v1/completions")
        with refusals():
            tokens = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    else:
        tokens = prompt
    check_vocabulary(tokens, vocab_size)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return list(tokens) or [first]
