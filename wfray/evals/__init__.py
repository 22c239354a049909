"""How good a model is: held-out perplexity (`perplexity`), texts that it writes on (`continuations`), and their records.

The records are what this package exports; they load without torch, for whoever only reads them.
"""

from wfray.evals.scores import Accuracy, Continuation, Score, Scores, SubjectScores, total

__all__ = ["Accuracy", "Continuation", "Score", "Scores", "SubjectScores", "total"]
