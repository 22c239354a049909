"""Running out of memory: for real under a limit of address space, and the messages of torch on a GPU and of numpy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.wfray.train.conftest import config
from wfray.data.corpus import PackedCorpus
from wfray.train.memory import explain_out_of_memory

ROOT = Path(__file__).parents[3]
CHILD = """
import resource, sys
from pathlib import Path
from tests.wfray.data.conftest import SEQUENCE_LENGTH
from tests.wfray.train.conftest import Attempt, config
from wfray.data.corpus import PackedCorpus

def attempt(rows):
    tokens = rows * SEQUENCE_LENGTH
    settings = config({"quantization": {}}, batch_tokens=tokens, tokens=tokens, checkpoint_every_tokens=tokens, micro_rows=rows)
    return Attempt(PackedCorpus(Path(sys.argv[1])), Path(sys.argv[2]), settings)

small, large = attempt(16), attempt(32768)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), used + int(sys.argv[3])))
small.run()
try:
    large.run()
except ValueError as error:
    print(error)
"""
SPARE = 64 * 2**20
"""Bytes of address space that the child may take beyond what it has: enough for a step of 16 rows."""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space hold on Linux")
def test_a_step_that_does_not_fit_says_how_much_it_asked_for_and_what_to_lower(corpus: PackedCorpus, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(corpus.directory), str(tmp_path), str(SPARE)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of memory: a training step asked for ") and done.stdout.count("\n") == 1
    assert int(done.stdout.split("asked for ")[1].split(" bytes")[0].replace(",", "")) > 2**20
    assert done.stdout.endswith("lower train.micro_rows from 32768 to 16384, or set train.gradient_checkpointing=true\n")


@pytest.mark.parametrize(
    ("error", "num_bytes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB"), "2,684,354,560"),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error"), "4,096"),
        (MemoryError("Unable to allocate 3.00 MiB for an array with shape (786432,)"), "3,145,728"),
    ],
)
@pytest.mark.parametrize(
    ("train", "mend"),
    [
        ({"micro_rows": 8, "gradient_checkpointing": True}, "lower train.micro_rows from 8 to 4$"),
        ({"micro_rows": 1}, "set train.gradient_checkpointing=true"),
        ({"micro_rows": 1, "gradient_checkpointing": True}, "pack shorter rows .* or use more train.num_workers"),
    ],
)
def test_the_message_names_bytes_and_mend(error: Exception, num_bytes: str, train: dict[str, object], mend: str) -> None:
    with pytest.raises(ValueError, match=f"asked for {num_bytes} bytes .*{mend}"), explain_out_of_memory(config(**train).train):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="^size mismatch$"), explain_out_of_memory(config().train):
        raise RuntimeError("size mismatch")
