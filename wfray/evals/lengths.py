"""How long prompts may be that engines of ours continue."""


def room_for_prompt(max_length: int, max_tokens: int) -> int:
    """Tokens of a prompt, of which only the end is kept where it is longer.

    Args:
        max_length: tokens that the model takes, answer included.
        max_tokens: of the answer (lm-eval's `max_gen_toks`).

    Raises:
        ValueError: the answer may take all of them.
    """
    if max_tokens >= max_length:
        raise ValueError(f"max_gen_toks {max_tokens} leaves no room for a prompt in a context of {max_length} tokens: set a smaller one")
    return max_length - max_tokens
