"""The training loop and its parts: feed, optimizer, schedule, checkpoints, collectives."""

from wfray.train.checkpoints import CheckpointStore
from wfray.train.collective import Collective
from wfray.train.feed import Feed, PendingSignals, SignalSource, StepPlan
from wfray.train.loop import Trainer

__all__ = ["CheckpointStore", "Collective", "Feed", "PendingSignals", "SignalSource", "StepPlan", "Trainer"]
