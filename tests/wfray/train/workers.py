"""Groups of gloo workers on this machine, without Ray: processes forked from a server that has imported everything once."""

from collections.abc import Callable
from datetime import timedelta
from multiprocessing.forkserver import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_workers(num_workers: int, function: Callable[..., Any], directory: Path, *args: Any) -> list[Any]:
    """Call `function(*args)` on every worker of a new group; the answers by rank."""
    set_forkserver_preload(["wfray.train", "transformers.models.llama.modeling_llama"])
    directory.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_work, (num_workers, function, directory, args), num_workers, start_method="forkserver")
    return [torch.load(directory / f"{rank}.pt") for rank in range(num_workers)]


def _work(rank: int, num_workers: int, function: Callable[..., Any], directory: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    store = dist.FileStore(str(directory / "rendezvous"), num_workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_workers, timeout=timedelta(seconds=60))
    torch.save(function(*args), directory / f"{rank}.pt")
    dist.destroy_process_group()
