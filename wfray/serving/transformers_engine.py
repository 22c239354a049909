"""The transformers engine: a Hugging Face directory, on a GPU where there is one.

Each answer has a key-value cache of its own and the answers take turns, one pass a token. What it cannot do: several answers in one pass,
reuse of common beginnings, so that it is for models that no other engine knows, and for comparison.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from wfray.data.tokenizer import load_directory_tokenizer
from wfray.quant.precision import DTYPES, resolved
from wfray.serving.answer import Answer
from wfray.serving.directories import is_quantized, refuse_student
from wfray.serving.engine import Piece, Request, join
from wfray.serving.prompts import prompt_tokens
from wfray.serving.token_bytes import all_token_bytes


@dataclass
class Job:
    """An answer in the making and what is computed of it."""

    answer: Answer
    cache: DynamicCache


class TransformersEngine:
    """See the module docstring; implements `Engine`."""

    def __init__(self, file: Path | str, context: int, slots: int, threads: int, trust_remote_code: bool = False) -> None:
        """Load the directory `file`, whose own code is run with `trust_remote_code`.

        Raises:
            ValueError: it holds no model that transformers knows, a student, or a model for a shorter context.
        """
        refuse_student(Path(file))
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_directory_tokenizer(Path(file))
        dtype = torch.float32 if is_quantized(Path(file)) else DTYPES[resolved("auto")]
        try:
            model = AutoModelForCausalLM.from_pretrained(file, dtype=dtype, trust_remote_code=trust_remote_code)
        except (OSError, KeyError) as error:
            raise ValueError(f"transformers cannot load {str(file)!r}: {error}") from None
        self.model = model.eval().to(self.device)
        trained = self.model.config.max_position_embeddings
        if context > trained:
            raise ValueError(f"context {context} of {str(file)!r} exceeds the {trained} positions that the model was trained for")
        self.context, self.slots = context, slots
        self.token_bytes = all_token_bytes(self.tokenizer, self.model.config.vocab_size)
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}
        self.jobs: dict[int, Job] = {}
        self.waiting: deque[tuple[int, Answer]] = deque()
        # A model that cannot run is to fail here, where whoever loads it hears of it.
        self.logits([self.tokenizer.eos_token_id], DynamicCache(), 1)

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return bool(self.jobs or self.waiting)

    def add(self, number: int, request: Request) -> None:
        """See `Engine.add`."""
        prompt = prompt_tokens(self.tokenizer, len(self.token_bytes), request.prompt)
        self.waiting.append((number, Answer(request, prompt, self.context, self.token_bytes.__getitem__)))

    def drop(self, number: int) -> None:
        """See `Engine.drop`."""
        self.jobs.pop(number, None)
        self.waiting = deque(item for item in self.waiting if item[0] != number)

    def step(self) -> list[tuple[int, Piece]]:
        """See `Engine.step`."""
        while self.waiting and len(self.jobs) < self.slots:
            number, answer = self.waiting.popleft()
            self.jobs[number] = Job(answer, DynamicCache())
        pieces = []
        for number, job in list(self.jobs.items()):
            if piece := self.advance(job):
                pieces.append((number, piece))
                if piece.finish_reason:
                    del self.jobs[number]
        return pieces

    def advance(self, job: Job) -> Piece | None:
        """One pass: the whole prompt first, then the token chosen last."""
        answer = job.answer
        pending = answer.tokens[-1:] or answer.prompt
        logits_TV = self.logits(pending, job.cache, len(pending) if answer.scores_prompt and not answer.tokens else 1)
        echo = None
        if not answer.tokens:
            if answer.scores_prompt:
                answer.read_prompt(0, list(logits_TV))
            echo = answer.echo()
            if echo is not None and echo.finish_reason:
                return echo
        return join(echo, answer.take(logits_TV[-1], self.ends.__contains__))

    @torch.inference_mode()
    @torch.compiler.set_stance("force_eager")
    def logits(self, tokens: list[int], cache: DynamicCache, num_kept: int) -> NDArray[np.float32]:
        """Of the last `num_kept` tokens of some that follow those in the cache, [num_kept, V]; eager, or each length would be compiled."""
        ids_1T = torch.tensor([tokens], device=self.device)
        output = self.model(ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=num_kept)
        logits_TV: NDArray[np.float32] = output.logits[0].float().cpu().numpy()
        return logits_TV

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model
