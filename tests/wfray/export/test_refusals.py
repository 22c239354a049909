"""What a GGUF file cannot express, or would express wrongly, is refused with the mend."""

import pytest

from wfray.config.export import GGUF
from wfray.export.gguf_bitnet import write_bitnet
from wfray.export.original import write_original

SUBLN = {"format": 1, "subln": {"placement": "output", "eps": 1e-5}, "quantization_lambda": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3"}, "family 'qwen3'"),
        ({"tie_word_embeddings": False}, "LM head of its own"),
        ({"hidden_act": "relu2"}, "activation 'relu2'"),
        ({"attention_bias": True}, "biases"),
        ({"head_dim": 64}, "queries of another width"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "RoPE of type 'linear'"),
        ({"wrinklefree": None}, "not a student"),
        ({"wrinklefree": {**SUBLN, "subln": {"placement": "all", "eps": 1e-5}}}, "placement 'all'"),
        ({"wrinklefree": {**SUBLN, "quantization_lambda": 0.5}}, "lambda 0.5"),
        ({"wrinklefree": {**SUBLN, "diffusion": {"block_size": 32}}}, "writes a block at a time"),
        ({"wrinklefree": {**SUBLN, "quantization_lambda": 0.0}}, "quantization off"),
    ],
)
def test_a_student_that_bitnet_cannot_express_is_refused(small, edited, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_bitnet(edited(small[1], **changes), tmp_path / "model.gguf", GGUF(kind="gguf"))
    assert not (tmp_path / "model.gguf").exists()


def test_an_original_of_another_family_is_refused(small, edited, tmp_path):
    with pytest.raises(ValueError, match="family 'qwen3'"):
        write_original(edited(small[0], model_type="qwen3"), tmp_path / "original.gguf")
