"""Tokens a second through the service, two clients, against the bare engine called in a loop, on the same cores.

Work: SmolLM2-135M in bfloat16, requests of 4 rows of 512 tokens of the quickstart's text, the wire `hidden`; the other wires that are cut
from it are in the detail. The engine in this process and the replica have as many threads; one works while the other
waits. Each client keeps two requests on its way, as a student does.
"""

import argparse
import os
import threading

import torch

from benchmarks.harness import interleave, medians, report
from benchmarks.teachers import LENGTH, client, deployed, model, part, rows
from wfray.data.batch import PackedBatch
from wfray.quant.determinism import use_deterministic_algorithms
from wfray.teacher import SignalRequest, TransformersEngine

GOAL = 0.95
ROWS, NUM_CLIENTS = 4, 2


def through_engine(engine: TransformersEngine, batch: PackedBatch, request: SignalRequest, num_requests: int) -> None:
    """One after the other."""
    for index in range(num_requests):
        engine.signals(part(batch, ROWS * index, ROWS), request)


def through_service(batch: PackedBatch, request: SignalRequest, num_requests: int) -> None:
    """The same requests from two clients."""

    def work(number: int) -> None:
        asking, ahead = client(request, f"client {number}"), []
        for index in range(number, num_requests, NUM_CLIENTS):
            if len(ahead) == asking.use.in_flight:
                ahead.pop(0).result()
            ahead.append(asking.request(part(batch, ROWS * index, ROWS)))
        for pending in ahead:
            pending.result()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=8, help=f"of {ROWS * LENGTH} tokens, a round")
    num_requests = parser.parse_args().requests
    threads = len(os.sched_getaffinity(0))
    batch = rows(ROWS * num_requests)
    torch.set_num_threads(threads)
    use_deterministic_algorithms()
    engine = TransformersEngine(model(), "bfloat16")
    shares, speeds = {}, {}
    with deployed(f"threads={threads}"):
        for wire in ("hidden", "topk"):
            request = SignalRequest(wires=[wire], num_ids=64)
            sides = {
                "engine": lambda request=request: through_engine(engine, batch, request, num_requests),
                "service": lambda request=request: through_service(batch, request, num_requests),
            }
            seconds = medians(interleave(sides, warm_ups=1))
            shares[wire] = seconds["engine"] / seconds["service"]
            speeds[wire] = {side: round(num_requests * ROWS * LENGTH / value) for side, value in seconds.items()}
    report(
        "teacher_throughput",
        shares["hidden"],
        "x of the bare engine's tokens a second",
        goal=GOAL,
        better="higher",
        detail={"share": {wire: round(share, 4) for wire, share in shares.items()}, "tokens_per_second": speeds, "threads": threads},
    )


if __name__ == "__main__":
    main()
