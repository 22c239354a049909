"""A model larger than memory is exported tensor by tensor: what a process holds beyond mapped files is watched while it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from wfray.student.checkpoint import copy_tokenizer
from wfray.student.weights import SINGLE

ROOT = Path(__file__).parents[3]
MEGABYTE = 2**20
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 10, 768, 2304, 49152
FORMATS = [
    {"kind": "gguf", "linear_type": "TQ2_0", "embedding_type": "Q6_K"},
    {"kind": "huggingface", "form": "packed"},
]
PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from pydantic import TypeAdapter
from wfray.config.export import Format
from wfray.export.formats import write_format

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.001)

small, large, target = map(Path, sys.argv[1:4])
report = {}
for number, wanted in enumerate(json.loads(sys.argv[4])):
    form = TypeAdapter(Format).validate_python(wanted)
    write_format(small, target / f"small{number}", form)  # loads what is loaded at first use
    before = peak = anonymous()
    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    num_bytes = write_format(large, target / f"large{number}", form).num_bytes
    done.set()
    watcher.join()
    report[json.dumps(wanted)] = {"peak": peak - before, "num_bytes": num_bytes}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory, small) -> Path:
    """A student of many layers, whose matrices are cut from the same random numbers."""
    directory = tmp_path_factory.mktemp("large") / "student"
    directory.mkdir()
    projections = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (256, HIDDEN),
        "self_attn.v_proj": (256, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    norms = {
        "input_layernorm": HIDDEN,
        "post_attention_layernorm": HIDDEN,
        "self_attn.o_proj.norm": HIDDEN,
        "mlp.down_proj.norm": INTERMEDIATE,
    }
    numbers = torch.randn(VOCABULARY * HIDDEN)
    tensors = {"model.embed_tokens.weight": numbers.view(VOCABULARY, HIDDEN), "model.norm.weight": torch.ones(HIDDEN)}
    for index in range(LAYERS):
        for name, (rows, columns) in projections.items():
            tensors[f"model.layers.{index}.{name}.weight"] = numbers[index : index + rows * columns].view(rows, columns).clone()
        for name, size in norms.items():
            tensors[f"model.layers.{index}.{name}.weight"] = torch.ones(size)
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    described = {"format": 1, "subln": {"placement": "output", "eps": 1e-6}, "quantization_lambda": 1.0}
    (directory / "config.json").write_text(json.dumps({**config.to_dict(), "wrinklefree": described}, default=str))
    copy_tokenizer(small[1], directory)
    return directory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from Linux's /proc")
def test_an_export_holds_tensors_and_never_the_model(large: Path, small: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(small[1]), str(large), str(tmp_path), json.dumps(FORMATS)]
    # Malloc keeps freed blocks of up to 32 MB, which are all of this model's matrices but not those of a model larger than memory.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MEGABYTE)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == len(FORMATS)
    matrix, embedding, latent = (4 * HIDDEN * size for size in (INTERMEDIATE, VOCABULARY, INTERMEDIATE * 3 * LAYERS))
    for wanted, measured in report.items():
        assert latent < (large / SINGLE).stat().st_size, "the model is larger than the bounds below"
        assert measured["peak"] < 8 * matrix + 20 * MEGABYTE < min(latent, embedding), (wanted, report)
