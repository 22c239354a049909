"""How good a model is: held-out perplexity, and texts that it writes on."""

from wfray.evals.continuations import Continuation, continue_greedily, heldout_prompts
from wfray.evals.perplexity import Score, score_batch, total
from wfray.evals.scores import Scores, SubjectScores

__all__ = [
    "Continuation",
    "Score",
    "Scores",
    "SubjectScores",
    "continue_greedily",
    "heldout_prompts",
    "score_batch",
    "total",
]
