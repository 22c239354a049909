"""The forward pass of block-diffusion training, in the place of `wfray.student.forward.run_body`: packed batch in, packed states out.

The trainer, its objectives and the teacher's signals stay as they are: at a packed position with a target stands the state of the
noisy copy that masks that target. The teacher reads the clean document causally, so for teacher and student alike the state at i - 1
speaks of token i.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from wfray.diffusion.attention import Capture, RowOfBlocks, fill_up
from wfray.diffusion.batch import BlockRow, block_row
from wfray.diffusion.blocks import Blocks
from wfray.student.attention import AttentionObserver
from wfray.student.forward import BodyOutput


@dataclass(frozen=True)
class Row:
    """Whole blocks in one row: token ids [N], positions [N], and what sees what."""

    input_ids: Tensor
    position_ids: Tensor
    blocks: Blocks


def whole_tiles(row: Row) -> Row:
    """The row with blocks of no document at its end, as flex_attention wants it."""
    blocks = fill_up(row.blocks)
    missing = len(blocks) * blocks.size - len(row.input_ids)
    return Row(pad(row.input_ids, (0, missing)), pad(row.position_ids, (0, missing)), blocks)


@dataclass(frozen=True)
class DiffusionForward:
    """Runs a student's body on the noised blocks of packed batches."""

    seed: int
    """Of the noise."""
    block_size: int
    mask_id: int

    def __call__(
        self,
        model: PreTrainedModel,
        batch: dict[str, Tensor],
        *,
        with_layers: bool = False,
        qkv_layer: int | None = None,
        observe: AttentionObserver | None = None,
    ) -> BodyOutput:
        """See `run_body`; `batch` holds `targets` and `sample_index` besides.

        Q, K and V are those of the first noisy copy, and `segments` its blocks: relations are within blocks.
        """
        assert not with_layers and observe is None, "neither is possible with blocks, and the configuration refuses both"
        row = self.row_of(batch)
        capture = None if qkv_layer is None else Capture(qkv_layer)
        hidden_NC = run_row(model, Row(row.input_ids, row.position_ids, row.blocks), capture)
        states = None if capture is None or capture.states is None else packed_states(capture.states, row.first_copy_BS)
        return BodyOutput(hidden_NC[row.predictor_BS.to(hidden_NC.device)], row.noisy, qkv=states)

    def row_of(self, batch: dict[str, Tensor]) -> BlockRow:
        """The row of blocks that a packed batch becomes."""
        return block_row(batch, self.seed, self.block_size, self.mask_id)


def run_row(model: PreTrainedModel, row: Row, capture: Capture | None = None) -> Tensor:
    """The last hidden states [N, C] of a row of blocks."""
    device = model.device
    whole = whole_tiles(row) if device.type == "cuda" else row
    output = model.base_model(
        input_ids=whole.input_ids[None].to(device),
        position_ids=whole.position_ids[None].to(device),
        attending=RowOfBlocks(whole.blocks.to(device)),
        capture=capture,
        use_cache=False,
    )
    hidden_NC = output.last_hidden_state[0, : len(row.input_ids)]
    assert isinstance(hidden_NC, Tensor)
    return hidden_NC


def packed_states(states: tuple[Tensor, Tensor, Tensor], place_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K and V [1, heads, N, D] of a row at packed positions: [B, heads, S, D] each."""
    query, key, value = (state[0][:, place_BS.to(state.device)].transpose(0, 1) for state in states)
    return query, key, value
