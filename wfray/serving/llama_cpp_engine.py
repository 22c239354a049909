"""The llama.cpp engine: a GGUF file in this process, one request at a time, the common beginning of successive prompts reused.

What it cannot do: several requests in one batch (they wait in order), log-probabilities, tool calls.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from wfray.export.llama_cpp import open_model
from wfray.serving.answer_text import AnswerText
from wfray.serving.engine import Piece, Sampling


class LlamaCppEngine:
    """See the module docstring; implements `Engine`."""

    def __init__(self, file: Path, context: int, threads: int) -> None:
        """Load `file`.

        Raises:
            ValueError: it is missing, corrupt or unknown to llama.cpp, or it was trained for a shorter context.
        """
        self.model = open_model(file, context, threads)
        self.context = context
        trained = self.model._model.n_ctx_train()
        if context > trained:
            raise ValueError(f"context {context} of {str(file)!r} exceeds the {trained} positions that the model was trained for")
        template = self.model.metadata.get("tokenizer.chat_template")
        self.formatter = None if template is None else self.chat_formatter(template)

    def chat_formatter(self, template: str) -> Jinja2ChatFormatter:
        """The renderer of the file's own chat template."""
        bos, eos = (self.model.detokenize([token], special=True).decode() for token in (self.model.token_bos(), self.model.token_eos()))
        return Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a plain prompt; an empty one is the beginning-of-text token."""
        return self.model.tokenize(text.encode(), add_bos=True, special=True) or [self.model.token_bos()]

    def render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation.

        Raises:
            ValueError: the file has no chat template, or the template refuses the messages.
        """
        if self.formatter is None:
            raise ValueError("this model has no chat template: use /v1/completions")
        prompt = self.formatter(messages=cast(Any, messages)).prompt
        return self.model.tokenize(prompt.encode(), add_bos=False, special=True)

    def generate(self, prompt: list[int], sampling: Sampling) -> Iterator[Piece]:
        """Pieces of the answer; see `Engine`."""
        if len(prompt) >= self.context:
            raise ValueError(f"the prompt has {len(prompt)} tokens, but the context is {self.context} tokens, answer included")
        budget = self.context - len(prompt)
        budget = budget if sampling.max_tokens is None else min(budget, sampling.max_tokens)
        self.model.set_seed(secrets.randbits(31) if sampling.seed is None else sampling.seed)
        tokens = self.model.generate(prompt, top_k=0, top_p=sampling.top_p, min_p=0.0, temp=sampling.temperature, repeat_penalty=1.0)
        answer, unsent = AnswerText(sampling.stop), 0
        for num_generated, token in enumerate(tokens, start=1):
            ended = llama_cpp.llama_vocab_is_eog(self.model._model.vocab, token)
            last = ended or num_generated == budget
            text = answer.add(b"" if ended else self.model.detokenize([token], special=True), final=last)
            unsent += 1
            if ended or answer.stopped:
                yield Piece(text, unsent, "stop")
                return
            if last:
                yield Piece(text, unsent, "length")
                return
            if text:
                yield Piece(text, unsent)
                unsent = 0

    def close(self) -> None:
        """Free the model."""
        self.model.close()
