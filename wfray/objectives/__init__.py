"""What a stage minimises: a weighted list of objectives on the student's body output, a packed batch and teacher signals."""

from wfray.objectives.alignment import alignment_loss
from wfray.objectives.linear_losses import LinearLosses, linear_losses
from wfray.objectives.relations import relation_loss
from wfray.objectives.stage_loss import StageLoss

__all__ = ["LinearLosses", "StageLoss", "alignment_loss", "linear_losses", "relation_loss"]
