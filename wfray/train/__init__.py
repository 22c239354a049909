"""The training loop and its parts: feed, optimizer, schedule, sharding, checkpoints, collectives."""

from wfray.train.checkpoints import CheckpointStore
from wfray.train.collective import Collective
from wfray.train.feed import Feed, PendingSignals, SignalSource, StepPlan
from wfray.train.loop import Trainer
from wfray.train.sharding import Replica

__all__ = ["CheckpointStore", "Collective", "Feed", "PendingSignals", "Replica", "SignalSource", "StepPlan", "Trainer"]
