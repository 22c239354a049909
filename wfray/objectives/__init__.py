"""What a stage minimises: a weighted list of objectives on the student's body output, a packed batch and teacher signals."""

from wfray.objectives.alignment import alignment_loss
from wfray.objectives.linear_losses import LinearLosses, linear_losses
from wfray.objectives.relations import num_related, relation_loss
from wfray.objectives.stage_loss import StageLoss, Totals

__all__ = ["LinearLosses", "StageLoss", "Totals", "alignment_loss", "linear_losses", "num_related", "relation_loss"]
