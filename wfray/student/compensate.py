"""A ternary start from a full-precision model, layer by layer and without training: compensated rounding on calibration text.

The model's own layers are gone through from first to last, twice each: at lambda 0 they are the original and show what every projection
puts out; then each group of projections that read one input is made ternary, on the inputs that the layers made ternary before it
give, towards the original's outputs (`wfray.quant.compensated`). So only one model is held, and beside it two streams of hidden
states of the calibration text, [N, C] each, and the outputs of one layer.

**What is aimed at.** The output projections (o_proj, down_proj) add to the residual stream, so they are aimed at what brings the student's
stream to the original's: each makes up for what was lost before it, as far as its input tells. Families that norm an output before it is
added are aimed at the output alone.

**What counts.** Errors of what is added to the stream are taken relative to it, those of gate and up also by how much their MLP adds to
it, and those of queries, keys and values as they are.

What it gives is in benchmarks/quality/LOG.md.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wfray.config.convert import Compensated
from wfray.quant.bitlinear import BitLinear, release_codes
from wfray.quant.compensated import Compensation, Moments
from wfray.quant.schedule import set_lambda
from wfray.student.families import OUTPUT_PROJECTIONS, Family, decoder_layers, family_of, projections
from wfray.student.forward import collect, run_body

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Projections that read one input, in the order in which a layer runs them."""

Batch = dict[str, Tensor]
Report = Callable[[int, int, float], None]
"""Is told after each layer: layers done, layers in all, and the drift."""


class Reached(Exception):
    """A layer's forward pass came to where it was to be left."""


@torch.no_grad()
def compensate(student: PreTrainedModel, batches: list[Batch], options: Compensated, report: Report) -> list[float]:
    """Give a freshly converted student, whose latent weights are its original's, latent weights of compensated rounding.

    Args:
        student: changed in place; left at lambda 1.
        batches: calibration text, packed rows as for `run_body`.
        options: ridge and damping.
        report: is told of each layer.

    Returns:
        of each layer the drift, the median over tokens of |student - original|^2 / |original|^2 of the layer's output on this text.
    """
    set_lambda(student, 0.0)
    batches = [{name: tensor.to(student.device) for name, tensor in batch.items()} for batch in batches]
    originals, keywords = layer_calls(student, batches)
    kept = [batch["segment_ids"].flatten() > 0 for batch in batches]
    streams = list(originals)
    drifts: list[float] = []
    layers = decoder_layers(student)
    for layer, given in zip(layers, keywords, strict=True):
        walk = LayerWalk(layer, family_of(student.config), given, kept)
        originals, streams = walk.compensate(originals, streams, options)
        drifts.append(drift(originals, streams, kept))
        report(len(drifts), len(layers), drifts[-1])
    return drifts


def layer_calls(model: PreTrainedModel, batches: list[Batch]) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """What the decoder layers are given: of each batch the first one's hidden states, and of each layer the keywords of each batch.

    Keywords differ between layers where a family turns positions in more than one way.
    """
    layers = decoder_layers(model)
    hidden: list[Tensor] = []
    keywords: list[list[dict[str, Any]]] = [[] for _ in layers]
    with ExitStack() as hooks:
        for layer, found in zip(layers, keywords, strict=True):
            keep = layer.register_forward_pre_hook(lambda module, args, given, found=found: found.append(given), with_kwargs=True)
            hooks.callback(keep.remove)
        hooks.callback(layers[0].register_forward_pre_hook(lambda module, args: hidden.append(args[0])).remove)
        for batch in batches:
            run_body(model, batch)
    return hidden, keywords


def drift(originals: list[Tensor], streams: list[Tensor], kept: list[Tensor]) -> float:
    """The median of the squared relative difference, over the tokens of documents."""
    pairs = zip(flat_tokens(streams, kept), flat_tokens(originals, kept), strict=True)
    relative = [(stream.float() - original).square().sum(-1) / original.float().square().sum(-1) for stream, original in pairs]
    return torch.cat(relative).median().item()


def flat_tokens(states: list[Tensor], kept: list[Tensor]) -> Iterator[Tensor]:
    """Of each batch [B, T, C] the tokens of documents, [N, C]."""
    return (state.flatten(0, 1)[keep] for state, keep in zip(states, kept, strict=True))


@dataclass
class OriginalTokens:
    """What the original did in one layer with the tokens of one batch: float or half, [N, ...]."""

    stream_NC: Tensor
    """The layer's input."""
    result_NC: Tensor
    """The layer's output."""
    outputs: dict[str, Tensor]
    """Of every projection, less its bias."""

    def after(self, projection: str) -> Tensor:
        """The stream after an output projection, float32."""
        return self.stream_NC.float() + self.outputs["o_proj"] if projection == "o_proj" else self.result_NC.float()

    def importance(self, projection: str) -> Tensor:
        """How much the error of a token counts, [N, 1]; see the module docstring."""
        if projection in OUTPUT_PROJECTIONS:
            return 1 / norms(self.after(projection))
        if projection == "gate_proj":
            return norms(self.outputs["down_proj"]) / norms(self.result_NC)
        return torch.ones_like(norms(self.stream_NC))


def norms(x_NC: Tensor) -> Tensor:
    """Euclidean norms [N, 1], float32."""
    return x_NC.float().norm(dim=-1, keepdim=True)


class LayerWalk:
    """One decoder layer and the calibration text."""

    def __init__(self, layer: nn.Module, family: Family, keywords: list[dict[str, Any]], kept: list[Tensor]) -> None:
        """Args: the layer, its family, and of each batch the keywords of a layer's call and the tokens that are of documents."""
        self.layer = layer
        self.norms_outputs = family.norms_outputs
        self.keywords = keywords
        self.kept = kept
        self.projections: dict[str, BitLinear] = {name: getattr(parent, name) for parent, name in projections(layer, family)}

    def compensate(self, originals: list[Tensor], streams: list[Tensor], options: Compensated) -> tuple[list[Tensor], list[Tensor]]:
        """Make the layer ternary; takes and returns the streams of the original and of the student, [B, T, C] a batch."""
        set_lambda(self.layer, 0.0)
        results, tokens = self.watch(originals)
        set_lambda(self.layer, 1.0)
        for group in GROUPS:
            self.compensate_group(group, tokens, streams, options)
        streams = self.run(streams)
        release_codes(self.layer)
        return results, streams

    def watch(self, originals: list[Tensor]) -> tuple[list[Tensor], list[OriginalTokens]]:
        """Run the original's layer: its outputs, and all that is aimed at."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.projections}
        with ExitStack() as hooks:
            for name, projection in self.projections.items():
                hooks.callback(projection.register_forward_hook(collect(found[name])).remove)
            results = self.run(originals)
        tokens = []
        for index, keep in enumerate(self.kept):
            outputs = {name: self.product(name, found[name][index]).flatten(0, 1)[keep] for name in found}
            tokens.append(OriginalTokens(originals[index].flatten(0, 1)[keep], results[index].flatten(0, 1)[keep], outputs))
        return results, tokens

    def product(self, name: str, output: Tensor) -> Tensor:
        """A projection's output less its bias."""
        bias = self.projections[name].bias
        return output if bias is None else output - bias

    def run(self, streams: list[Tensor]) -> list[Tensor]:
        """The layer's output."""
        outputs = [self.layer(stream, **keywords) for stream, keywords in zip(streams, self.keywords, strict=True)]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]

    def inputs(self, name: str, streams: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What a projection quantizes, and the stream that its block adds to."""
        found: list[Tensor] = []
        attended: list[Tensor] = []

        def leave(module: BitLinear, args: tuple[Tensor, ...]) -> None:
            found.append(module.normed(args[0]))
            raise Reached

        with ExitStack() as hooks:
            hooks.callback(self.projections[name].register_forward_pre_hook(leave).remove)
            hooks.callback(self.projections["o_proj"].register_forward_hook(collect(attended)).remove)
            for stream, keywords in zip(streams, self.keywords, strict=True):
                try:
                    self.layer(stream, **keywords)
                except Reached:
                    pass
        bases = [stream + output for stream, output in zip(streams, attended, strict=True)] if attended else streams
        return list(flat_tokens(found, self.kept)), list(flat_tokens(bases, self.kept))

    def compensate_group(self, group: tuple[str, ...], tokens: list[OriginalTokens], streams: list[Tensor], options: Compensated) -> None:
        """Make the projections that read one input ternary."""
        inputs, bases = self.inputs(group[0], streams)
        widths = [self.projections[name].weight.shape[0] for name in group]
        moments = Moments(inputs[0].shape[-1], sum(widths), inputs[0].device)
        for original, x_NC, base_NC in zip(tokens, inputs, bases, strict=True):
            if group[0] in OUTPUT_PROJECTIONS and not self.norms_outputs:
                wanted_ND = original.after(group[0]) - base_NC
            else:
                wanted_ND = torch.cat([original.outputs[name] for name in group], dim=-1)
            moments.add(x_NC, wanted_ND, original.importance(group[0]))
        compensation = Compensation(moments.inputs_CC, options.ridge, options.damping)
        matrices = [self.projections[name] for name in group]
        latents = compensation.latents([matrix.weight for matrix in matrices], list(moments.cross_DC.split(widths)))
        for projection, latent in zip(matrices, latents, strict=True):
            projection.weight = nn.Parameter(latent)
            projection.hold_codes()
