"""Scores of generated summaries: ROUGE of each (percent, with stemming, as papers on CNN/DailyMail do) and BLEU of all together."""

from functools import lru_cache
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu as sacrebleu_corpus

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


@lru_cache(maxsize=1)
def scorer() -> RougeScorer:
    """Made once: it loads a stemmer."""
    return RougeScorer(ROUGE, use_stemmer=True)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The scores of one summary; `bleu` is the pair that `corpus_bleu` takes."""
    truth, summary = doc["highlights"], results[0].strip()
    found = scorer().score(truth, summary)
    return {"bleu": (truth, summary), **{name: 100 * found[name].fmeasure for name in ROUGE}}


def corpus_bleu(items: list[tuple[str, str]]) -> float:
    """BLEU of all summaries, percent."""
    truths, summaries = zip(*items, strict=True)
    return float(sacrebleu_corpus(list(summaries), [list(truths)]).score)
