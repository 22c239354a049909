"""16 clients at once for five minutes: failures, latencies, and whether resident memory stays flat.

Work: SmolLM2-135M (Q4_1) behind Ray Serve, streamed answers of 64 tokens to prompts that begin alike. Memory is that of the replica and of
its engine's process, every second; flat means that the last fifth needs at most 2% more than the second fifth, the first being warm-up.
"""

import argparse
import asyncio
import statistics
import time

import aiohttp

from benchmarks.harness import report
from benchmarks.served import Ask, Timed, config, cores, deployed, family, over_http, prompts

NUM_CLIENTS = 16
MAX_GROWTH = 1.02


async def load(ask: Ask, seconds: float) -> tuple[list[Timed], list[str]]:
    """Answers and failures of all clients until the time is over."""
    answers, failures = list[Timed](), list[str]()
    end, work = time.monotonic() + seconds, prompts(1000)

    async def client(number: int) -> None:
        index = number
        while time.monotonic() < end:
            try:
                answers.append(await ask(work[index % len(work)]))
            except (aiohttp.ClientError, RuntimeError) as error:
                failures.append(repr(error))
            index += NUM_CLIENTS

    await asyncio.gather(*(client(number) for number in range(NUM_CLIENTS)))
    return answers, failures


async def watch_memory(megabytes: dict[str, list[float]]) -> None:
    """Note resident memory once a second."""
    processes = family()
    while True:
        for name, process in processes.items():
            megabytes.setdefault(name, []).append(process.memory_info().rss / 2**20)
        await asyncio.sleep(1.0)


async def measure(url: str, seconds: float) -> tuple[list[Timed], list[str], dict[str, list[float]]]:
    """Load and memory together."""
    megabytes: dict[str, list[float]] = {}
    async with aiohttp.ClientSession() as session:
        watching = asyncio.create_task(watch_memory(megabytes))
        answers, failures = await load(over_http(session, url), seconds)
        watching.cancel()
    return answers, failures, megabytes


def percentiles(values: list[float]) -> dict[str, float]:
    """In milliseconds."""
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(1000 * cuts[49], 1), "p99": round(1000 * cuts[98], 1)}


def growth(values: list[float]) -> float:
    """The last fifth's largest value over the second fifth's."""
    fifth = max(len(values) // 5, 1)
    return max(values[-fifth:]) / max(values[fifth : 2 * fifth])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=cores(), help="of the engine")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with deployed(config(arguments.threads)) as url:
        answers, failures, megabytes = asyncio.run(measure(url, seconds))
    grown = {name: round(growth(values), 4) for name, values in megabytes.items()}
    report(
        "serve_load",
        len(failures),
        "failed requests",
        goal=0,
        detail={
            "answers": len(answers),
            "minutes": round(seconds / 60, 2),
            "tokens_per_second": round(sum(answer.num_tokens for answer in answers) / seconds, 1),
            "first_token_ms": percentiles([answer.first for answer in answers]),
            "token_ms": percentiles([gap for answer in answers for gap in answer.gaps]),
            "memory_growth": grown,
            "memory_flat": max(grown.values()) <= MAX_GROWTH,
            "megabytes": {name: round(values[-1]) for name, values in megabytes.items()},
            "failures": failures[:5],
        },
    )


if __name__ == "__main__":
    main()
