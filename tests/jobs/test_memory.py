"""Peak memory of process trees, against processes that hold a known amount."""

import os
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

from jobs.memory import ResidentMemory, resident_bytes

MB = 2**20
CHILD_OF_A_PROCESS = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
HOLD_64_MB = "block = bytearray(b'x') * (64 << 20); print('ready', flush=True); input()"
MAP_SHARED = """
import sys
import time
from multiprocessing import resource_tracker, shared_memory
block = shared_memory.SharedMemory(sys.argv[1])
resource_tracker.unregister(block._name, "shared_memory")
total = sum(block.buf[::4096]); print('ready', flush=True); input()
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_the_peak_counts_grandchildren_and_stays_after_they_end() -> None:
    with ResidentMemory([os.getpid()], interval_seconds=0.05) as memory:
        before = memory.peak_bytes or resident_bytes({os.getpid()})
        process = start(CHILD_OF_A_PROCESS, HOLD_64_MB)
        held = resident_bytes({os.getpid()})
        while memory.peak_bytes < before + 64 * MB:
            assert held - before >= 64 * MB
        process.communicate(b"\n")
    assert memory.peak_bytes - before >= 64 * MB
    assert resident_bytes({process.pid}) == 0, "a root that has ended counts nothing"


def test_a_peak_is_seen_though_earlier_processes_mapped_more(tmp_path: Path) -> None:
    """Many processes that map the same pages have a high sum of resident sizes and little memory."""
    block = shared_memory.SharedMemory(create=True, size=64 * MB)
    block.buf[:] = b"x" * block.size
    with ResidentMemory([os.getpid()], interval_seconds=0.05) as memory:
        sharing = [start(MAP_SHARED, block.name) for _ in range(6)]
        time.sleep(0.5)
        for process in sharing:
            process.communicate(b"\n")
        block.close()
        block.unlink()
        before = resident_bytes({os.getpid()})
        process = start(HOLD_64_MB.replace("64", "400"))
        deadline = time.monotonic() + 60
        while memory.peak_bytes < before + 380 * MB and time.monotonic() < deadline:
            time.sleep(0.05)
        process.communicate(b"\n")
    assert memory.peak_bytes >= before + 380 * MB


def test_memory_that_two_processes_map_counts_once() -> None:
    block = shared_memory.SharedMemory(create=True, size=64 * MB)
    block.buf[:] = b"x" * block.size
    processes = [start(MAP_SHARED, block.name) for _ in range(2)]
    both = resident_bytes({process.pid for process in processes} | {os.getpid()})
    for process in processes:
        process.communicate(b"\n")
    alone = resident_bytes({os.getpid()})
    block.close()
    block.unlink()
    assert both - alone < 64 * MB, "two interpreters, but not the shared 64 MB again"


def test_a_root_can_be_added_later() -> None:
    process = start(HOLD_64_MB)
    memory = ResidentMemory([], interval_seconds=0.01)
    memory.add_root(process.pid)
    with memory:
        pass
    process.communicate(b"\n")
    assert memory.peak_bytes >= 64 * MB
