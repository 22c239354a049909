"""A block-diffusion student as lm-eval's model: log-likelihoods by Monte Carlo, texts by block decoding; one request at a time.

A log-likelihood is the bound that `wfray.diffusion.likelihood` estimates, so its items carry a standard error, whose mean over the
requests is told on standard error and kept in `standard_errors`. The same seed draws the same masks for every request, whoever answers
it and whatever else is asked.
"""

import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from wfray.diffusion.acceptance import Sampling
from wfray.diffusion.answers import Decoding
from wfray.diffusion.decode import BlockDecoder
from wfray.diffusion.likelihood import Likelihood, Scorer
from wfray.diffusion.student import chosen_block_size, load_diffuser
from wfray.evals.lengths import room_for_prompt
from wfray.quant import hold_codes

Tokens = tuple[Any, list[int], list[int]]
"""What was asked, tokens of the context, tokens of the continuation."""
MAX_NEW_TOKENS = 256


class DiffusionLM(TemplateLM):
    """See the module docstring; model type `wrinklefree-diffusion` of the stock command."""

    def __init__(
        self,
        pretrained: str,
        samples: int | str = 32,
        seed: int | str = 0,
        threshold: float | str | None = None,
        block_size: int | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        **unused: Any,
    ) -> None:
        """Load the student in the directory `pretrained`.

        Args:
            pretrained: the directory.
            samples: masks of each block of a continuation; blocks with no more sets of tokens than that are exact.
            seed: of the masks, and of texts that are sampled.
            threshold: of acceptance in texts; None: the student's own.
            block_size: None: the one that it was trained for; another is warned of.
            device: None: the GPU, where there is one.
            dtype: bfloat16 is that of products; weights stay float32.
            batch_size: requests are answered one by one, whatever it is.

        Raises:
            ValueError: the directory holds no block-diffusion student, or there are fewer than two samples.
        """
        super().__init__()
        diffuser = load_diffuser(Path(pretrained))
        self.model, self.hf_tokenizer, self.method, self.stop_ids = diffuser.model, diffuser.tokenizer, diffuser.method, diffuser.stop_ids
        torch.nn.Module.to(self.model, device if device and torch.cuda.is_available() else default_device())
        hold_codes(self.model)
        self.precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self.block_size = chosen_block_size(self.method, None if block_size is None else int(block_size))
        self.scorer = Scorer(self.model, self.method.mask_token_id, self.block_size, int(samples), int(seed), self.precision)
        self.seed, self.threshold = int(seed), self.method.threshold if threshold is None else float(threshold)
        self.standard_errors: list[float] = []
        """In nats, of all log-likelihoods so far, in the order in which they were computed."""
        self.max_length, self.batch_size = int(self.model.config.max_position_embeddings), int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        assert isinstance(self.hf_tokenizer.eos_token_id, int)
        return self.hf_tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is."""
        begin = self.hf_tokenizer.bos_token_id
        return begin if isinstance(begin, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer was loaded from."""
        return str(self.hf_tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Tokens of a text."""
        return list(self.hf_tokenizer.encode(string, add_special_tokens=add_special_tokens is not False))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the student's own template; its last turn stays open where no new one is to begin, as lm-eval does it."""
        text = self.hf_tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
        )
        return str(text)

    def _loglikelihood_tokens(self, requests: list[Tokens], **unused: Any) -> list[tuple[float, bool]]:
        scores = [self.likelihood(context, continuation) for _, context, continuation in requests]
        self.note([score.standard_error for score in scores])
        return [(score.nats, score.is_greedy) for score in scores]

    def note(self, standard_errors: list[float]) -> None:
        """Keep the standard errors of log-likelihoods, and say them."""
        if standard_errors:
            self.standard_errors += standard_errors
            mean, drawn = fmean(standard_errors), f"{self.scorer.num_samples} samples a block, seed {self.seed}"
            print(f"{len(standard_errors)} log-likelihoods, {drawn}: mean standard error {mean:.4f} nats", file=sys.stderr, flush=True)

    def likelihood(self, context: list[int], continuation: list[int]) -> Likelihood:
        """The score of a continuation with its standard error; a context that is too long loses its beginning."""
        return self.scorer.score(context[-max(1, self.max_length - len(continuation)) :], continuation)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, window by window; windows are sampled apart, so their variances add up."""
        texts = [[self.likelihood(*window) for window in self.windows(request.args[0])] for request in requests]
        self.note([math.hypot(*(score.standard_error for score in scores)) for scores in texts])
        return [sum(score.nats for score in scores) for scores in texts]

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text as contexts and continuations that cover it once."""
        found = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
        return [make_disjoint_window(window) for window in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop sequence."""
        return [self.generate(*request.args) for request in requests]

    def generate(self, context: str, settings: dict[str, Any]) -> str:
        """One text."""
        kwargs = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=self.hf_tokenizer.decode([self.eot_token_id]))
        temperature = float(kwargs.get("temperature", 0.0)) if kwargs.get("do_sample") else 0.0
        decoding = Decoding(
            self.block_size,
            min(self.method.sub_block_size, self.block_size),
            self.threshold,
            int(kwargs["max_gen_toks"]),
            sampling=Sampling(temperature, float(kwargs.get("top_p", 1.0)), self.seed),
        )
        prompt = (self.tok_encode(context) or [self.prefix_token_id])[-room_for_prompt(self.max_length, decoding.max_tokens) :]
        decoder = BlockDecoder(self.model, self.method.mask_token_id, self.stop_ids, decoding, 1, len(prompt) + decoding.max_tokens)
        written: list[int] = []
        text = ""
        with torch.autocast(self.model.device.type, dtype=self.precision, enabled=self.precision == torch.bfloat16):
            for given in decoder.stream([prompt]):
                written += given.tokens
                text = str(self.hf_tokenizer.decode(written))
                if any(stop in text for stop in until):
                    break
        return str(postprocess_generated_text(text, stop=until, think_end_token=None))


def default_device() -> str:
    """The GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
