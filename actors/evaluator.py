"""The evaluator's role: one actor measures one subject after the other, source by source.

It holds one model at a time, and stays for the whole evaluation: starting a worker and importing torch takes longer than
scoring a small model.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from wfray.config.evaluate import EvaluateConfig, LabelledSource, Subject
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import heldout
from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.evals import Accuracy, Continuation, Score, total
from wfray.evals.classification import accuracy, label_tokens, labelled_rows
from wfray.evals.continuations import continue_greedily, heldout_prompts
from wfray.evals.perplexity import score_batch
from wfray.quant.precision import dtype_of, resolved
from wfray.student import load_original, load_student
from wfray.train.feed import as_tensors


class Evaluator:
    """The corpus, and the model of the subject that is being measured."""

    model: PreTrainedModel

    def __init__(self, config: EvaluateConfig, corpus: Path) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.dtype, self.directory = config, dtype_of(config.precision), corpus

    def precision(self) -> str:
        """Of the products."""
        return resolved(self.config.precision)

    def open(self, subject: Subject, model: Path) -> list[str]:
        """Load the model in the directory `model` in place of the last one; returns the names of the sources."""
        self.subject = subject
        if hasattr(self, "model"):
            del self.model
        self.corpus = PackedCorpus(self.directory)
        self.tokenizer = load_directory_tokenizer(model)
        self.corpus.require_tokenizer(tokenizer_sha256(self.tokenizer))
        load = load_original if subject.kind == "original" else load_student
        self.model = load(model, torch.float32)
        self.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        return self.corpus.source_names

    def score(self, source: str) -> Score:
        """The score on the held-out rows of one source."""
        num_rows, step = self.config.rows_per_source, self.config.batch_rows
        rows = heldout(self.corpus, source, num_rows)
        batches = [slice(first, first + step) for first in range(0, num_rows, step)]
        return total(score_batch(self.model, self.to_device(as_tensors(rows, part)), self.dtype) for part in batches)

    def classify(self, labelled: LabelledSource) -> Accuracy:
        """Answers to the held-out examples of a source with labels."""
        batch, spans = labelled_rows(self.corpus, labelled.source)
        tokens = label_tokens(self.tokenizer, labelled.labels)
        return accuracy(self.model, batch, spans, tokens, self.config.batch_rows, self.dtype)

    def write_on(self, source: str) -> list[Continuation]:
        """Continuations of held-out prompts of one source, under the subject's name."""
        wanted = self.config.continuations
        assert wanted is not None
        rows = heldout(self.corpus, source, self.config.rows_per_source)
        return [
            Continuation(
                source=source,
                prompt=self.text(prompt.tolist()),
                truth=self.text(truth.tolist()),
                answers={self.subject.name: self.text(continue_greedily(self.model, prompt, wanted.new_tokens, self.dtype))},
            )
            for prompt, truth in heldout_prompts(rows, wanted.per_source, wanted.prompt_tokens, wanted.new_tokens)
        ]

    def text(self, tokens: list[int]) -> str:
        """What tokens say."""
        return str(self.tokenizer.decode(tokens))

    def to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch where the model is."""
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}
