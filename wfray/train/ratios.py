"""The gradient norm of each weighted term over that of cross-entropy: a wrong coefficient is seen at once (BitDistill's gamma was).

Each term is run alone, forward and backward, on one micro-batch before the step's gradients exist, and leaves nothing behind:
gradients are dropped and the random generators set back, so the losses of the run are the same to the bit with and without it.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from wfray.train.clipping import global_norm
from wfray.train.state import RandomState


def gradient_ratios(model: nn.Module, kinds: Iterable[str], term: Callable[[str], Tensor]) -> dict[str, float]:
    """`gradient_ratio_<kind>` for every kind but cross_entropy; none where cross-entropy has no gradient at this moment.

    Args:
        model: without gradients.
        kinds: the stage's objectives, cross_entropy among them.
        term: the weighted loss of one objective alone.
    """
    before = RandomState.capture()
    norms: dict[str, float] = {}
    for kind in kinds:
        term(kind).backward()
        norms[kind] = global_norm(model.parameters())
        model.zero_grad(set_to_none=True)
    before.restore()
    reference = norms.pop("cross_entropy")
    return {f"gradient_ratio_{kind}": norm / reference for kind, norm in norms.items()} if reference else {}
