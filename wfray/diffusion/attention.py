"""Attention over blocks (`wfray.diffusion.blocks`), registered with transformers under the name `blocks`.

On a CPU a row goes part by part (`parts_attention`). On a GPU it is one flex_attention with a `BlockMask` built from the blocks themselves,
tile by tile. [tokens, tokens] exists nowhere, and both masks come from `blocks.sees`.

While decoding, the keys and values of finished blocks come from a cache instead (`wfray.diffusion.cache`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from wfray.diffusion.blocks import NOWHERE, Blocks, sees
from wfray.diffusion.parts_attention import Part, PartsAttention, parts_of
from wfray.student.attention import product_dtype
from wfray.student.families import decoder_layers, family_of

NAME = "blocks"
TILE = 128
"""Tokens of a tile of flex_attention."""
compiled_flex_attention = torch.compile(flex_attention, dynamic=True)


class Attending(Protocol):
    """What one layer's Q, K and V meet."""

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float) -> Tensor:
        """The mixed values [B, H, T, D]."""
        ...


@dataclass
class Capture:
    """Asks for the Q, K and V of one layer; filled during the forward pass, [B, heads, T, head_dim] each."""

    layer: int
    states: tuple[Tensor, Tensor, Tensor] | None = None


def use_block_attention(model: PreTrainedModel) -> None:
    """Let `model` attend over blocks.

    Raises:
        ValueError: a layer has a sliding window, which blocks do not know.
    """
    attention = family_of(model.config).attention
    if any(getattr(layer.get_submodule(attention), "sliding_window", None) for layer in decoder_layers(model)):
        raise ValueError(f"models of family {model.config.model_type!r} with a sliding window cannot become block-diffusion students")
    model.set_attn_implementation(NAME)


@torch.compiler.disable
def blocks_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attending: Attending | None = None,
    capture: Capture | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; returns the mixed values as [B, T, H, D]."""
    if dropout:
        raise ValueError("block attention knows no dropout: set attention_dropout to 0 in the model's config.json")
    assert attending is not None, "a model that attends over blocks is run by wfray.diffusion only"
    if capture is not None and capture.layer == module.layer_idx:
        capture.states = (query_BHTD, key_BKTD, value_BKTD)
    scaling = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    mixed_BHTD = attending.attend(int(module.layer_idx), query_BHTD, key_BKTD, value_BKTD, scaling)  # type: ignore[arg-type]
    return mixed_BHTD.transpose(1, 2), None


AttentionInterface.register(NAME, blocks_attention)


@dataclass(frozen=True)
class RowOfBlocks:
    """One row of blocks attends to itself; implements `Attending` for batches of one row."""

    blocks: Blocks

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float) -> Tensor:
        """See `Attending`."""
        if query_BHTD.device.type == "cuda":
            grouped = query_BHTD.shape[1] != key_BKTD.shape[1]
            query_BHTD, key_BKTD = query_BHTD.to(value_BKTD.dtype), key_BKTD.to(value_BKTD.dtype)
            mixed = compiled_flex_attention(query_BHTD, key_BKTD, value_BKTD, block_mask=self.flex_mask, scale=scaling, enable_gqa=grouped)
            assert isinstance(mixed, Tensor)
            return mixed
        states = [state[0].to(product_dtype(query_BHTD)) for state in (query_BHTD, key_BKTD, value_BKTD)]
        return PartsAttention.apply(*states, self.parts, scaling).transpose(0, 1)[None]

    @cached_property
    def parts(self) -> list[Part]:
        """The row in parts."""
        return parts_of(self.blocks)

    @cached_property
    def flex_mask(self) -> BlockMask:
        """The mask as flex_attention takes it."""
        return flex_block_mask(self.blocks)


def grouped_attention(query_BHTD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads; the mask broadcasts to [B, 1, T, L]."""
    grouped = query_BHTD.shape[1] != key_BKLD.shape[1]
    return F.scaled_dot_product_attention(query_BHTD, key_BKLD, value_BKLD, attn_mask=mask, scale=scaling, enable_gqa=grouped)


def flex_block_mask(blocks: Blocks) -> BlockMask:
    """The row's mask in tiles of `TILE` tokens; the largest tensor is [blocks, blocks], 1 / size^2 of the dense mask.

    Raises:
        ValueError: tiles are not whole blocks, or the row is not whole tiles.
    """
    require_whole_blocks(blocks.size)
    if len(blocks) * blocks.size % TILE:
        raise ValueError(f"{len(blocks)} blocks of {blocks.size} are not whole tiles of {TILE} tokens: see fill_up")
    in_tile = TILE // blocks.size
    of_query = (blocks.document[:, None], blocks.number[:, None], blocks.copy[:, None])
    seen = sees(of_query, (blocks.document[None], blocks.number[None], blocks.copy[None]))
    tiles = seen.unflatten(0, (-1, in_tile)).unflatten(2, (-1, in_tile))
    some, every = tiles.any(dim=3).any(dim=1), tiles.all(dim=3).all(dim=1)
    partial, full = in_front(some & ~every), in_front(every)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query // blocks.size, key // blocks.size
        of_query = (blocks.document[query], blocks.number[query], blocks.copy[query])
        return sees(of_query, (blocks.document[key], blocks.number[key], blocks.copy[key]))

    num_tokens = len(blocks) * blocks.size
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=TILE, mask_mod=mask_mod, seq_lengths=(num_tokens, num_tokens))


def in_front(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row of tiles has, and which, those first: [1, 1, rows] and [1, 1, rows, columns], as flex_attention wants."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(dim=-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def require_whole_blocks(size: int) -> None:
    """Raise `ValueError` where tiles are not whole blocks."""
    if TILE % size:
        raise ValueError(f"on a GPU a block must divide {TILE} tokens: block_size {size} does not")


def fill_up(blocks: Blocks) -> Blocks:
    """The row with blocks of no document at its end, so that it is whole tiles.

    Raises:
        ValueError: tiles are not whole blocks.
    """
    require_whole_blocks(blocks.size)
    missing = -len(blocks) % (TILE // blocks.size)
    extra = torch.full((missing,), NOWHERE, dtype=torch.int64, device=blocks.document.device)
    numbers = torch.arange(missing, device=extra.device)
    return Blocks(
        torch.cat([blocks.document, extra]), torch.cat([blocks.number, numbers]), torch.cat([blocks.copy, numbers + 1]), blocks.size
    )
