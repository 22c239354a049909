"""How good a model is: held-out perplexity (`perplexity`), accuracy on labels (`classification`), texts that it writes on
(`continuations`), lm-eval's tasks (`harness`), and their records.

The records are what this package exports; they load without torch, for whoever only reads them.
"""

from wfray.evals.harness_scores import HarnessScores
from wfray.evals.scores import Accuracy, Continuation, Score, Scores, SubjectScores, total

__all__ = ["Accuracy", "Continuation", "HarnessScores", "Score", "Scores", "SubjectScores", "total"]
