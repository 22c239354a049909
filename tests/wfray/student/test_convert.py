"""Conversion and its calibration; what the student then computes is tested in test_families."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wfray.data.conftest import write_corpus
from tests.wfray.student.conftest import tiny_model
from wfray.config.convert import ConvertConfig, Subln
from wfray.data.stream import MixedStream
from wfray.quant import BitLinear
from wfray.student import calibrate, convert, hidden_states
from wfray.student.calibrate import in_pieces, measure_input_rms
from wfray.student.families import FAMILIES, PROJECTIONS, decoder_layers


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("placement", "normed"), [("none", ()), ("output", ("o_proj", "down_proj")), ("all", PROJECTIONS)])
def test_all_seven_projections_are_converted_and_only_those_asked_for_are_normed(family, placement, normed) -> None:
    student = convert(tiny_model(family), Subln(placement=placement, init="ones"))
    for layer in decoder_layers(student):
        found = {name.rsplit(".")[-1]: module for name, module in layer.named_modules() if isinstance(module, BitLinear)}
        assert set(found) == set(PROJECTIONS)
        assert {name for name, module in found.items() if module.norm is not None} == set(normed)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_calibrated_subln_keeps_the_scale_of_the_inputs(family, packed: dict[str, Tensor]) -> None:
    model = tiny_model(family)
    inputs: dict[str, Tensor] = {}
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0]))
    rms = measure_input_rms(model, Subln(), lambda: hidden_states(model, packed))
    handle.remove()
    assert rms["1.down_proj"] == pytest.approx(inputs["x"].square().mean().sqrt().item(), rel=1e-5)
    down = convert(model, Subln(), rms).model.layers[1].mlp.down_proj
    assert isinstance(down, BitLinear) and down.norm is not None
    assert down.norm(inputs["x"]).square().mean().sqrt().item() == pytest.approx(rms["1.down_proj"], rel=0.05)


def test_calibration_reads_the_first_rows_of_the_training_mix(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})
    model = tiny_model("llama")
    rows = MixedStream(corpus, "train", seed=0).take(3)
    batch = {name: torch.from_numpy(rows[name]) for name in ("input_ids", "position_ids", "segment_ids")}
    wanted = measure_input_rms(model, Subln(), lambda: hidden_states(model, batch))
    assert calibrate(model, Subln(), tmp_path, num_tokens=3 * 16 + 5) == pytest.approx(wanted, rel=1e-6)
    held = tiny_model("llama").bfloat16()
    assert calibrate(held, Subln(), tmp_path, num_tokens=3 * 16) == pytest.approx(wanted, rel=0.02)


def test_documents_are_cut_into_pieces() -> None:
    """Documents of seven and two tokens, and three of padding."""
    batch = {
        "input_ids": torch.arange(12)[None],
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2]], dtype=torch.int32),
        "segment_ids": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 2, 2, 0, 0, 0]], dtype=torch.int32),
    }
    cut = in_pieces(batch, 3)
    assert cut["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 0, 1, 0, 1, 2]]
    assert cut["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 3, 4, 4, 0, 0, 0]]
    assert cut["input_ids"] is batch["input_ids"] and {name: part.dtype for name, part in cut.items()} == {
        name: part.dtype for name, part in batch.items()
    }


def test_calibration_without_measurements_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration corpus"):
        convert(tiny_model("llama"), Subln(init="calibrated"))


def test_calibration_without_a_corpus_is_refused_when_the_configuration_is_read() -> None:
    tree = {"run": "runs/x", "model": {"kind": "directory", "path": "somewhere"}, "corpus": None}
    with pytest.raises(ValueError, match="needs a calibration corpus; give `corpus`, or set subln.init=ones"):
        ConvertConfig.parse(tree, origin="a test")
    without = ConvertConfig.parse({**tree, "subln": {"init": "ones"}}, origin="a test")
    assert without.parents == {"model": "somewhere"}, "a local model is an input, whose change is noticed"
