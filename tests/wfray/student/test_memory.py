"""Conversion takes the memory of one copy of the model and a shard, measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTE = 2**20
SHARD_BYTES = 24 * MEGABYTE
PROGRAM = """
import json, multiprocessing, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, PreTrainedModel
from wfray.config.convert import Subln
from wfray.student import convert, load_original, load_student, save_student
from wfray.student.checkpoint import empty_model, student_tensors, write_config
from wfray.student.original import copy_checkpoint
from wfray.student.weights import write_weights

root, shard_bytes = Path(sys.argv[1]), int(sys.argv[2])

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

def bytes_of(model):
    # The sums make every weight resident.
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.sum() is not None)

def write_given(size):
    shapes = dict(num_attention_heads=8, num_key_value_heads=4, vocab_size=4096, tie_word_embeddings=True)
    config = {"small": LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, **shapes),
              "large": LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, **shapes)}[size]
    directory = root / size / "given"
    directory.mkdir(parents=True)
    tensors = {n: torch.full(t.shape, 0.01) for n, t in student_tensors(empty_model(config, torch.float32)).items()}
    write_weights(directory, tensors, torch.float32, 8 * shard_bytes)
    write_config(config, directory, torch.float32)

def copy(size):
    copy_checkpoint(root / size / "given", root / size / "original", None, shard_bytes)

def convert_it(size):
    model = load_original(root / size / "original", torch.bfloat16)
    held = bytes_of(model)
    save_student(convert(model, Subln(init="ones")), root / size / "student", root / size / "original", shard_bytes)
    return held

def load(size):
    return bytes_of(load_student(root / size / "student"))

def measure(step, queue):
    step("small")  # loads what is loaded at first use
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    result = step("large")
    queue.put({"result": result, "peak": memory("VmHWM") - before})

context = multiprocessing.get_context("fork")
report = {}
for step in (write_given, copy, convert_it, load):
    queue = context.Queue()
    process = context.Process(target=measure, args=(step, queue))
    process.start()
    report[step.__name__] = queue.get(timeout=120)
    process.join()
print(json.dumps(report))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from Linux's /proc")
def test_a_model_is_held_once_and_passes_through_shard_by_shard(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(SHARD_BYTES)]
    # Malloc keeps freed blocks of up to 32 MB, which are all of this model's tensors but not those of a model that needs shards.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MEGABYTE)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    peaks = {name: step["peak"] for name, step in report.items()}
    held, loaded = report["convert_it"]["result"], report["load"]["result"]
    assert held > 150 * MEGABYTE and loaded > 300 * MEGABYTE
    assert len(list((tmp_path / "large" / "student").glob("model-*.safetensors"))) > 10
    # The peaks can be seen: making the model in memory takes all of it.
    assert peaks["write_given"] > 0.9 * loaded, peaks
    # A float32 checkpoint is copied to bfloat16 in one shard and the tensor that is read.
    assert peaks["copy"] < 2 * SHARD_BYTES + 10 * MEGABYTE, peaks
    assert held < peaks["convert_it"] < 1.15 * held + SHARD_BYTES, peaks
    assert loaded < peaks["load"] < 1.15 * loaded, peaks
