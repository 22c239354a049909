"""Cross-entropy, KL against a teacher and certainty, computed together with the LM head's product, chunk by chunk of tokens.

No [tokens, vocabulary] tensor exists, forward or backward: a chunk's logits are formed, the losses and their gradient with
respect to the logits are taken from them at once and written over them, the gradients of the hidden states and of the head are
accumulated, and the next chunk takes the same memory. Backward only scales what forward left. With `z` the student's logits:

    CE = logsumexp(z) - z[target]                         d CE / dz = softmax(z) - onehot(target)
    KL(teacher || student) at z / T: see `soft_targets`   d KL / dz = (d KL / ds) / T, times T^2 if asked (Hinton)
    entropy of right tokens: see `certainty`

All are means over the tokens that have a target. The four products (student, teacher, two gradients) are those of the plain
implementation, none is repeated; they run in the head's dtype (bfloat16 in training), softmax and sums in at least float32.

A chunk is large enough (`CHUNK_TOKENS`) that adding its product to the head's gradient, a pass over memory, is a few percent of
the products. Within a chunk the pointwise work goes by tiles of rows that stay in the processor's cache: in float32 over a whole
chunk it would wait for memory as long as the products take. Peak extra memory: two chunks of logits in the products' dtype, three tiles,
one product of the head's gradient and the head in the products' dtype.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wfray.objectives.certainty import CertaintyTerm, add_certainty_, right_tokens
from wfray.objectives.divergence import exponentiate_
from wfray.objectives.soft_targets import SoftTargets, Teacher, TeacherHead, soft_targets

CHUNK_TOKENS = 1024
"""Most tokens of one chunk; chunks are of nearly equal size."""
TILE_BYTES = {"cpu": 6 * 2**20, "cuda": 128 * 2**20}
"""Of one working copy of a tile. Three of them and the products must fit a CPU's last cache, and every pass over one makes threads wait
for each other, which takes long where other processes share the cores; a GPU wants few, large kernels."""


@dataclass(frozen=True)
class LinearLosses:
    """Result of `linear_losses`: `total` carries the gradient, the parts are for logs, 0 where they were not asked for."""

    total: Tensor
    cross_entropy: float
    logits_kl: float
    entropy: float
    """Of the tokens that are predicted rightly, over all targets."""


@dataclass(frozen=True)
class Task:
    """What `_LinearLosses` computes beside its two differentiable inputs."""

    targets_T: Tensor
    num_targets: int
    ce_weight: float | None
    kl_weight: float | None
    teacher: Teacher | None
    kl_factor: float
    """What the KL is multiplied by: the squared temperature, or 1."""
    certainty: CertaintyTerm | None
    dtype: torch.dtype
    chunk_tokens: int

    @property
    def num_logits(self) -> int:
        """Chunks of logits held at once: the student's, and the teacher's where it sends hidden states."""
        return 2 if isinstance(self.teacher, TeacherHead) else 1


def linear_losses(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    targets_T: Tensor,
    num_targets: int,
    *,
    ce_weight: float | None = None,
    kl_weight: float | None = None,
    teacher: Teacher | None = None,
    tau_squared: bool = True,
    certainty: CertaintyTerm | None = None,
    dtype: torch.dtype = torch.float32,
    chunk_tokens: int | None = None,
) -> LinearLosses:
    """`ce_weight * CE + kl_weight * KL + certainty.weight * entropy`, without logits in memory.

    Args:
        hidden_TC: the LM head's input, tokens in any order.
        weight_VC: the student's LM head; one that needs no gradient costs one product less.
        targets_T: the token to be predicted from each position, -100 where there is none.
        num_targets: the number that the sums are divided by: targets of the whole global batch.
        ce_weight, kl_weight: None: the loss is not evaluated.
        teacher: its signal, aligned with the tokens; needed for the KL. It states the temperature.
        tau_squared: multiply the KL by the squared temperature.
        certainty: weight and temperature of the entropy; None: it is not evaluated.
        dtype: of the products.
        chunk_tokens: most tokens whose logits are formed at once; None: `CHUNK_TOKENS`.

    Raises:
        ValueError: a KL without a teacher.
    """
    if kl_weight is not None and teacher is None:
        raise ValueError("linear_losses: kl_weight needs a teacher")
    kl_factor = teacher.temperature**2 if teacher is not None and tau_squared else 1.0
    if kl_weight is None:
        teacher = None
    task = Task(targets_T, num_targets, ce_weight, kl_weight, teacher, kl_factor, certainty, dtype, chunk_tokens or CHUNK_TOKENS)
    with torch.autocast(hidden_TC.device.type, enabled=False):
        total, ce, kl, entropy = _LinearLosses.apply(hidden_TC, weight_VC, task)
    return LinearLosses(total, ce.item(), kl.item(), entropy.item())


class _LinearLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TC: Tensor, weight_VC: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head_VC = weight_VC.detach().to(task.dtype)
        gradients = Gradients(hidden_TC, weight_VC, *ctx.needs_input_grad[:2])
        sums = torch.zeros(3, dtype=torch.float64, device=hidden_TC.device)
        chunks = chunks_of(task)
        memory = Memory.of(head_VC, len(chunks[0]) if chunks else 0, task.num_logits)
        for tokens in chunks:
            hidden_NC = hidden_TC.detach().index_select(0, tokens).to(task.dtype)
            logits_NV = torch.mm(hidden_NC, head_VC.t(), out=memory.logits_NV[0][: len(tokens)])
            soft = None if task.teacher is None else soft_targets(task.teacher, tokens, memory.logits_NV[-1], memory.tiles_TV[1:])
            sums += chunk_losses_(logits_NV, task.targets_T[tokens].long(), soft, memory.tiles_TV[0], task)
            gradients.add(tokens, logits_NV, hidden_NC, head_VC)
        ctx.gradients = gradients.result()
        ce, kl, entropy = sums / task.num_targets
        certainty_weight = task.certainty.weight if task.certainty else 0.0
        total = (task.ce_weight or 0.0) * ce + (task.kl_weight or 0.0) * kl + certainty_weight * entropy
        return total.float(), ce, kl, entropy

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        # Let go of, so that a parameter takes them for its own; saved tensors would be copied.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_losses: backward a second time; its gradients were handed over the first time")
        scale = grad_total.item()
        return *(gradient if gradient is None or scale == 1.0 else gradient.mul_(scale) for gradient in gradients), None


@dataclass(frozen=True)
class Memory:
    """What every chunk uses anew: fresh memory costs a visit to the operating system for every page."""

    logits_NV: list[Tensor]
    """In the products' dtype, [chunk, V] each: the student's logits, then their gradient; the teacher's, where they are formed."""
    tiles_TV: list[Tensor]
    """In working precision, [rows of a tile, V] each: one, or three where the teacher's logits are formed."""

    @classmethod
    def of(cls, head_VC: Tensor, chunk: int, num_logits: int) -> "Memory":
        """For chunks of at most `chunk` tokens."""
        working = torch.promote_types(head_VC.dtype, torch.float32)
        rows = max(1, min(chunk, TILE_BYTES[head_VC.device.type] // (working.itemsize * len(head_VC))))
        tiles_TV = [head_VC.new_empty(rows, len(head_VC), dtype=working) for _ in range(2 * num_logits - 1)]
        return cls([head_VC.new_empty(chunk, len(head_VC)) for _ in range(num_logits)], tiles_TV)


class Gradients:
    """Gradients of the hidden states and of the head, where they are needed; the head's adds up in at least float32."""

    def __init__(self, hidden_TC: Tensor, weight_VC: Tensor, needs_hidden: bool, needs_weight: bool) -> None:
        self.weight_VC, self.needs_weight = weight_VC.detach(), needs_weight
        self.hidden_TC = torch.zeros_like(hidden_TC) if needs_hidden else None
        self.sum_VC: Tensor | None = None
        self.product_VC: Tensor | None = None

    def add(self, tokens: Tensor, slope_NV: Tensor, hidden_NC: Tensor, head_VC: Tensor) -> None:
        """Add what a chunk contributes through the gradient of its logits."""
        if self.hidden_TC is not None:
            self.hidden_TC.index_copy_(0, tokens, (slope_NV @ head_VC).to(self.hidden_TC.dtype))
        if not self.needs_weight:
            return
        if self.product_VC is None or self.sum_VC is None:
            self.product_VC = slope_NV.t() @ hidden_NC
            self.sum_VC = self.product_VC.to(torch.promote_types(hidden_NC.dtype, torch.float32), copy=True)
        else:
            add_by_tiles_(self.sum_VC, torch.mm(slope_NV.t(), hidden_NC, out=self.product_VC))

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """Both, in the dtypes of the inputs."""
        if not self.needs_weight:
            return self.hidden_TC, None
        return self.hidden_TC, torch.zeros_like(self.weight_VC) if self.sum_VC is None else self.sum_VC.to(self.weight_VC.dtype)


def add_by_tiles_(sum_VC: Tensor, term_VC: Tensor) -> None:
    """Add a term of another dtype tile by tile: torch would make a copy of it in the sum's dtype first."""
    num_rows = max(1, TILE_BYTES[sum_VC.device.type] // (sum_VC.itemsize * sum_VC.shape[1]))
    for rows_VC, terms_VC in zip(sum_VC.split(num_rows), term_VC.split(num_rows), strict=True):
        rows_VC.add_(terms_VC)


def chunks_of(task: Task) -> tuple[Tensor, ...]:
    """The positions of tokens that have a target, in runs of nearly equal length."""
    tokens_N = (task.targets_T != -100).nonzero().squeeze(-1)
    return tokens_N.tensor_split(math.ceil(len(tokens_N) / task.chunk_tokens)) if len(tokens_N) else ()


def chunk_losses_(logits_NV: Tensor, targets_N: Tensor, soft: SoftTargets | None, tile_TV: Tensor, task: Task) -> Tensor:
    """Sums of the cross-entropies, KLs and entropies [3]; their weighted gradient takes the place of the logits."""
    sums = torch.zeros(3, dtype=torch.float64, device=logits_NV.device)
    for start in range(0, len(logits_NV), len(tile_TV)):
        rows = slice(start, min(start + len(tile_TV), len(logits_NV)))
        logits_TV = tile_TV[: rows.stop - start].copy_(logits_NV[rows])
        right = right_tokens(logits_TV, targets_N[rows], task.certainty.temperature) if task.certainty else None
        ce_T, kl_T, slope_TV = tile_losses_(logits_TV, targets_N[rows], rows, soft, task)
        sums[:2] += torch.stack([ce_T.double().sum(), kl_T.double().sum()])
        if task.certainty and right:
            sums[2] += add_certainty_(slope_TV, right, task.certainty.weight / task.num_targets)
        logits_NV[rows] = slope_TV
    return sums


def tile_losses_(logits_TV: Tensor, targets_T: Tensor, rows: slice, soft: SoftTargets | None, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies [T], KLs [T] and the gradient of their weighted sum, of a tile whose logits are consumed.

    At temperature 1 one softmax serves both.
    """
    hard = (task.ce_weight or 0.0) / task.num_targets
    weight = (task.kl_weight or 0.0) * task.kl_factor / task.num_targets
    label_T1 = targets_T[:, None]
    picked_T1 = logits_TV.gather(1, label_T1)
    kl_T = picked_T1.new_zeros(len(targets_T))
    warm_TV: Tensor | None = None
    if soft is None:
        lse_T1, slope_TV = cross_entropy_(logits_TV, hard)
    elif soft.temperature == 1.0:
        lse_T1, kl_T, slope_TV = soft.losses(rows, logits_TV, hard, weight)
    else:
        _, kl_T, warm_TV = soft.losses(rows, logits_TV / soft.temperature, 0.0, weight / soft.temperature)
        if task.ce_weight is None:
            return torch.zeros_like(kl_T), kl_T * task.kl_factor, warm_TV
        lse_T1, slope_TV = cross_entropy_(logits_TV, hard)
        slope_TV.add_(warm_TV)
    slope_TV.scatter_add_(1, label_T1, torch.full_like(picked_T1, -hard))
    return (lse_T1 - picked_T1).squeeze(-1), kl_T * task.kl_factor, slope_TV


def cross_entropy_(logits_TV: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """logsumexp [T, 1] and `weight * softmax`, in place of the logits."""
    lse_T1, total_T1 = exponentiate_(logits_TV)
    return lse_T1, logits_TV.mul_(weight / total_T1)
