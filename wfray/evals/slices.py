"""Requests divided into slices that give the answers of one process, to the bit.

A float product depends in its last digits on what else is in the batch. lm-eval's Hugging Face model sorts the requests by length,
groups those of one context, and cuts batches off the sorted list; a slice here is a run of whole batches of that list, so whoever
answers it forms the same batches. Engines that answer requests one by one get slices of neighbours in the list as it stands.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
Request = tuple[Any, ...]
"""Arguments of an lm-eval request: context and continuation, a text, or context and settings."""


def divide(lm: LM, kind: Kind, requests: Sequence[Request], size: int) -> list[list[int]]:
    """Numbers of the requests of each slice, every request once.

    Args:
        lm: the model that will answer, for its tokenizer and batch size.
        kind: of the requests.
        requests: all of this kind.
        size: about how many requests a slice shall have.
    """
    if not isinstance(lm, HFLM):
        return [list(range(first, min(first + size, len(requests)))) for first in range(0, len(requests), size)]
    match kind:
        case "loglikelihood":
            return joined(batches_of_continuations(lm, requests), size)
        case "generate_until":
            return joined(batches_of_prompts(lm, requests), size)
        case "loglikelihood_rolling":
            return joined(batches_of_texts(lm, requests), size)


def joined(batches: list[list[int]], size: int) -> list[list[int]]:
    """Consecutive batches as slices of `size` requests or little more, the requests of each in their own order."""
    slices: list[list[int]] = []
    for batch in batches:
        if not slices or len(slices[-1]) >= size:
            slices.append([])
        slices[-1] += batch
    return [sorted(numbers) for numbers in slices]


def batches_of_continuations(lm: HFLM, requests: Sequence[Request]) -> list[list[int]]:
    """lm-eval's batches of log-likelihoods: of groups that share all tokens but the last, the longest first."""
    encoded = [encode(lm, *request) for request in requests]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (context, continuation) in enumerate(encoded):
        groups[tuple(context + continuation[:-1])].append(number)

    def order(numbers: list[int]) -> tuple[int, list[int]]:
        context, continuation = max((encoded[number] for number in numbers), key=lambda pair: len(pair[1]))
        return -len(context + continuation), context + continuation

    ordered = sorted(groups.values(), key=order)
    return [sum(ordered[first : first + lm.batch_size], []) for first in range(0, len(ordered), lm.batch_size)]


def encode(lm: HFLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and its continuation, as lm-eval divides them."""
    if context:
        return lm._encode_pair(context, continuation)
    tokens = lm.tok_encode(continuation, add_special_tokens=False)
    return (tokens[:1], tokens[1:]) if tokens[0] == lm.prefix_token_id else ([lm.prefix_token_id], tokens)


def batches_of_prompts(lm: HFLM, requests: Sequence[Request]) -> list[list[int]]:
    """lm-eval's batches of generations: of prompts with the same settings, the longest first."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (_, settings) in enumerate(requests):
        groups[json.dumps(settings, sort_keys=True)].append(number)
    batches = []
    for numbers in groups.values():
        ordered = sorted(numbers, key=lambda number: (-len(lm.tok_encode(requests[number][0])), requests[number][0]))
        batches += [ordered[first : first + lm.batch_size] for first in range(0, len(ordered), lm.batch_size)]
    return batches


def batches_of_texts(lm: HFLM, requests: Sequence[Request]) -> list[list[int]]:
    """lm-eval's batches of whole texts: their windows in a row, cut where a batch ends with a text, and at the end."""
    batches: list[list[int]] = [[]]
    windows = 0
    for number, (text,) in enumerate(requests):
        batches[-1].append(number)
        windows += len(list(get_rolling_token_windows(lm.tok_encode(text), lm.prefix_token_id, lm.max_length, 1)))
        if windows % lm.batch_size == 0:
            batches.append([])
    return [batch for batch in batches if batch]
