"""Sharding of a student over the workers of a stage with FSDP2: each holds 1/W of the float32 weights, gradients, optimizer states.

One unit per decoder layer, and the root with embedding, LM head and final norm. The root's forward pass is body *and* loss (`Root`),
since the loss multiplies with the LM head's weight itself and needs it whole. Gradients are reduce-scattered as plain sums: each
worker's loss is divided by the targets of the whole global batch already. With one worker nothing is sharded.

Ternary weights travel as int8 codes, once per optimizer step. At its start each worker quantizes its own rows with the scale of
the whole matrix, `D = sum over workers of sum|W| / size`, and all-gathers the codes. FSDP2 itself never gathers these weights: its
all-gather hooks on them give `LatentWeight`, which has the shape and takes the gradient but holds no floats. While lambda is below 1
the layers compute with floats, which are then gathered beside the codes, also once per step.

Received by each worker per step, in bytes, for N ternary and E other weights and M micro-batches of a worker, all times (W-1)/W:

    all-gather of the weights      N + 4 E           (FSDP2's own: 2 M 4 (N + E); below lambda 1: 5 N + 4 E)
    reduce-scatter of gradients    4 M (N + E)

SmolLM2-135M (N = 106e6, E = 28e6) with 8 micro-batches: 219 MB instead of 8.6 GB of weights. The price is memory: N bytes of codes
stay on every worker from the first micro-batch to the last, beside its 16 (N + E) / W bytes of weights, gradients and optimizer states.

The codes are those of one worker: rows are never cut, and the sum of the rows' sums of |w| is in float64 (see `wfray.quant.ternary`).
Another order of that sum changes it by about 1e-16 of itself, hence D, a float32, only where it lies that close to the middle between
two floats: about once in 1e8 matrices.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from wfray.quant import BitLinear, bit_linears, hold_codes, release_codes
from wfray.quant.ternary import absolute_sum, ternary_codes, ternary_scale
from wfray.student.families import decoder_layers
from wfray.train.collective import Collective

T = TypeVar("T")


class Root(nn.Module):
    """The student as FSDP2's root: its forward pass is whatever is computed with the student, outside the student's own as well."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        """The result of `compute`, while embedding, LM head and final norm are whole."""
        return compute()


class LatentWeight(torch.Tensor):
    """Stands for the whole latent weight [D, C] of a BitLinear on a worker that holds some of its rows.

    It has the weight's shape and its place in autograd; what reads its values gets the floats gathered for lambda below 1.
    """

    shard: "TernaryShard"
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shard: "TernaryShard") -> "LatentWeight":
        local = shard.local_RC
        tensor = torch.Tensor._make_wrapper_subclass(cls, shard.shape, dtype=local.dtype, device=local.device)
        tensor.shard = shard
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # type: ignore[override]
        if function in (torch.ops.aten.detach.default, torch.ops.aten.as_strided.default):
            return LatentWeight(args[0].shard)
        args, kwargs = tree_map_only(LatentWeight, lambda weight: weight.shard.floats, (args, kwargs or {}))
        return function(*args, **kwargs)


class TernaryShard:
    """The rows of one BitLinear's latent weight on this worker, and what is gathered of the others' for the time of a step."""

    def __init__(self, layer: BitLinear) -> None:
        """Take over the gathering of `layer`'s weight, which FSDP2 has sharded, from FSDP2."""
        weight = layer.weight
        assert isinstance(weight, DTensor)
        self.layer, self.shape, self.num_workers = layer, weight.shape, weight.device_mesh.size()
        # FSDP2 looks for the hooks on this very object; `to_local` of a parameter returns another one.
        self.local_RC = weight._local_tensor
        self._floats: Tensor | None = None
        for hook in (self.fsdp_pre_all_gather, self.fsdp_post_all_gather):
            setattr(self.local_RC, hook.__name__, hook)

    @property
    def num_local_rows(self) -> int:
        """Rows of the largest shard; the last workers may have fewer."""
        return -(-self.shape[0] // self.num_workers)

    @property
    def floats(self) -> Tensor:
        """The whole latent weight, where it was gathered."""
        if self._floats is None:
            raise RuntimeError("the latent weight is sharded: only its codes are held on every worker")
        return self._floats

    def hold(self, scale: Tensor) -> None:
        """Gather the codes, and the floats where lambda is below 1."""
        self.layer.hold_codes((self._gather(ternary_codes(self.local_RC, scale)), scale))
        self._floats = None if self.layer.partial_lambda is None else self._gather(self.local_RC)

    def release(self) -> None:
        """Drop what was gathered."""
        self.layer.release_codes()
        self._floats = None

    def _gather(self, local_RC: Tensor) -> Tensor:
        padded = nn.functional.pad(local_RC, (0, 0, 0, self.num_local_rows - len(local_RC)))
        whole = padded.new_empty(self.num_workers * self.num_local_rows, self.shape[1])
        dist.all_gather_single(whole, padded)
        return whole[: self.shape[0]]

    def fsdp_pre_all_gather(
        self, mesh: DeviceMesh, outer_size: torch.Size, outer_stride: tuple[int, ...], module: nn.Module, policy: Any
    ) -> tuple[tuple[Tensor], None]:
        """Give FSDP2 nothing to gather; it insists on rows of equal number where shards differ, so then on worthless bytes."""
        num_rows = self.num_local_rows if self.shape[0] % self.num_workers else 0
        return (torch.zeros(num_rows, self.shape[1], dtype=torch.int8, device=self.local_RC.device),), None

    def fsdp_post_all_gather(
        self, gathered: tuple[Tensor, ...], metadata: None, dtype: torch.dtype, *, out: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """The layer's parameter while FSDP2 takes the weight for whole."""
        return (LatentWeight(self), ()) if out is None else None


class Replica:
    """The student on one worker, sharded where there are several."""

    def __init__(self, model: PreTrainedModel, precision: torch.dtype, collective: Collective) -> None:
        """Shard `model` in place, on its device: its parameters become `DTensor`s, for the optimizer to be made of.

        Args:
            model: the student, with equal weights on every worker.
            precision: of the products.
            collective: the workers.
        """
        self.model, self.precision = model, precision
        self._root = Root(model)
        self._units: list[FSDPModule] = []
        self._shards: list[TernaryShard] = []
        if collective.world_size > 1:
            self._units = shard_units([*decoder_layers(model), self._root], collective.world_size)
            self._shards = [TernaryShard(layer) for layer in bit_linears(model)]

    def forward(self, compute: Callable[[], T], *, is_last: bool = True) -> T:
        """Run a forward pass: every use of the student's weights must be within one.

        Args:
            compute: returns tensors to call backward on, alone or in a tuple, list or dict.
            is_last: after its backward pass gradients are looked at or weights change, else another forward pass comes.
        """
        for unit in self._units:
            unit.set_reshard_after_backward(is_last, recurse=False)
        return self._root(compute)

    @torch.no_grad()
    def evaluate(self, compute: Callable[[], T]) -> T:
        """Run forward passes without gradients, between two steps, with codes of the weights as they stand."""
        self.hold_codes()
        result = self._root(compute)
        self.release_codes()
        for unit in self._units:
            unit.reshard()
        return result

    @torch.no_grad()
    def hold_codes(self) -> None:
        """Quantize every weight for the step that begins."""
        if not self._shards:
            return hold_codes(self.model)
        totals = torch.stack([absolute_sum(shard.local_RC) for shard in self._shards])
        dist.all_reduce(totals)
        for shard, total in zip(self._shards, totals, strict=True):
            shard.hold(ternary_scale(total, shard.shape.numel()))

    def release_codes(self) -> None:
        """Forget the codes: the weights are about to change."""
        if not self._shards:
            return release_codes(self.model)
        for shard in self._shards:
            shard.release()

    @torch.no_grad()
    def gather(self) -> None:
        """End the training: put whole parameters back into the model, on every worker."""
        wholes: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(parameter, DTensor):
                    if parameter not in wholes:
                        wholes[parameter] = nn.Parameter(parameter.full_tensor())
                    setattr(module, name, wholes[parameter])


def shard_units(modules: list[nn.Module], num_workers: int) -> list[FSDPModule]:
    """Shard modules, the root last, each as one unit of communication; gradients are summed."""
    mesh = init_device_mesh(next(modules[-1].parameters()).device.type, (num_workers,))
    # What FSDP2 gathers of a layer are its norms: too little to be worth freeing between forward and backward.
    units = [fully_shard(module, mesh=mesh, reshard_after_forward=False) for module in modules]
    for unit in units:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    return units
