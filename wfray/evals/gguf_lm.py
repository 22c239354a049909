"""A GGUF file in llama.cpp as lm-eval's model: log-likelihoods and generation, in this process.

Requests with the same context are answered one after the other: the context is read once, and each continuation from there. So an
answer depends on the request alone, not on its neighbours, and a task of four choices costs little more than one.
"""

from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray

from wfray.evals.lengths import room_for_prompt
from wfray.export.llama_cpp import open_model

Tokens = tuple[Any, list[int], list[int]]
"""What was asked, tokens of the context, tokens of the continuation."""
MAX_NEW_TOKENS = 256


class GGUFLM(TemplateLM):
    """See the module docstring; model type `wrinklefree-gguf` of the stock command."""

    def __init__(
        self, pretrained: str, context: int | str = 2048, threads: int | str | None = None, batch_size: int | str = 1, **unused: Any
    ) -> None:
        """Load the file `pretrained`.

        Args:
            pretrained: the GGUF file.
            context: positions of the cache; longer requests lose their beginning.
            threads: CPU threads; 2 unless given.
            batch_size: requests are answered one by one, whatever it is.

        Raises:
            ValueError: the file is missing, corrupt or unknown to llama.cpp.
        """
        super().__init__()
        self.max_length = int(context)
        self.model = open_model(Path(pretrained), self.max_length, int(threads or 2), all_logits=True)
        self.batch_size = int(batch_size)
        self.read: list[int] | None = None
        """The context at the beginning of the cache."""
        template = self.model.metadata.get("tokenizer.chat_template")
        bos, eos = self.text_of(self.prefix_token_id), self.text_of(self.eot_token_id)
        self.chat = None if template is None else Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return int(self.model.token_eos())

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is: the beginning of a text, or its end where the vocabulary has no other."""
        return int(self.model.token_bos()) if self.model.token_bos() >= 0 else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """The model's name in the file."""
        return str(self.model.metadata.get("general.name", "gguf"))

    def text_of(self, token: int) -> str:
        """What a token says."""
        return str(self.model.detokenize([token], special=True).decode(errors="replace"))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """Tokens of a text, with what the file's tokenizer puts before it unless that is switched off."""
        return list(self.model.tokenize(string.encode(), add_bos=add_special_tokens is not False, special=True))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the file's own template; its last turn stays open where no new one is to begin, as lm-eval does it.

        Raises:
            ValueError: the file has none.
        """
        if self.chat is None:
            raise ValueError("this GGUF file has no chat template: set harness.chat_template=false")
        self.chat.add_generation_prompt = add_generation_prompt
        text = str(self.chat(messages=chat_history).prompt)  # type: ignore[arg-type]
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        said = last if last in text else last.strip()
        return text[: text.rindex(said) + len(said)]

    def _loglikelihood_tokens(self, requests: list[Tokens], **unused: Any) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for number in sorted(range(len(requests)), key=lambda number: requests[number][1]):
            _, context, continuation = requests[number]
            answers[number] = self.likelihood(context, continuation)
        return answers

    def likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """The log-likelihood of a continuation, and whether greedy decoding would produce it."""
        tokens = (context + continuation)[-(self.max_length + 1) :][:-1]
        num_before = len(tokens) - len(continuation)
        before, rest = tokens[:num_before], tokens[num_before:]
        if self.read != before:
            self.model.reset()
            self.model.eval(before)
            self.read = before
        # Going back to the end of the context drops what the last continuation left in the cache.
        self.model.n_tokens = num_before
        self.model.eval(rest)
        logits = np.array(self.model.scores[num_before : num_before + len(continuation)], dtype=np.float64)
        chosen = np.array(continuation)
        return float(log_softmax_at(logits, chosen).sum()), bool((logits.argmax(-1) == chosen).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, window by window."""
        return [sum(self.likelihood(*window)[0] for window in self.windows(request.args[0])) for request in requests]

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text as contexts and continuations that cover it once."""
        found = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        return [make_disjoint_window(window) for window in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop sequence."""
        return [self.generate(*request.args) for request in requests]

    def generate(self, context: str, settings: dict[str, Any]) -> str:
        """One text."""
        kwargs = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        until = handle_stop_sequences(kwargs.pop("until", None), eos=self.text_of(self.eot_token_id))
        budget = int(kwargs["max_gen_toks"])
        prompt = self.tok_encode(context)[-room_for_prompt(self.max_length, budget) :]
        self.read = None
        self.model.reset()
        written: list[int] = []
        temperature = float(kwargs.get("temperature", 0.0)) if kwargs.get("do_sample") else 0.0
        for token in self.model.generate(prompt, top_k=0, top_p=1.0, min_p=0.0, temp=temperature, repeat_penalty=1.0):
            written.append(token)
            text = self.model.detokenize(written, special=True).decode(errors="ignore")
            if len(written) == budget or any(stop in text for stop in until):
                break
        return str(postprocess_generated_text(text, stop=until, think_end_token=None))


def log_softmax_at(logits_NV: NDArray[np.float64], chosen_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log-probability of one token a row [N]."""
    largest_N = logits_NV.max(-1)
    total_N = np.exp(logits_NV - largest_N[:, None]).sum(-1)
    return logits_NV[np.arange(len(chosen_N)), chosen_N] - largest_N - np.log(total_N)
