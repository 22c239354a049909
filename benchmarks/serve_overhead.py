"""What Ray Serve and HTTP cost: streamed answers through the application against the bare engine's process, 1 and 8 clients.

Work: SmolLM2-135M (Q4_1), prompts of about 40 tokens, 64 tokens of answer, greedy. Both sides have engines with equal settings, of which
one works while the other waits; the engine, Ray and the clients share the same cores. A second peer is the application on one plain HTTP
server, without Ray. Goals: throughput at least 0.95 of the bare engine's, time to the first token at most 10 ms more.
"""

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import uvicorn

from benchmarks.harness import report
from benchmarks.served import MODEL, Ask, Timed, config, cores, deployed, from_backend, model_file, over_http, prompts, run_clients
from wfray.config.serve import ServeConfig
from wfray.runs.children import free_port
from wfray.serving.api import Access, build_app
from wfray.serving.engines import make_backend
from wfray.serving.host import Host, Hosting

GOAL, GOAL_MILLISECONDS = 0.95, 10.0
CLIENTS = (1, 8)


async def without_ray(stack: AsyncExitStack, settings: ServeConfig) -> str:
    """The application on a plain HTTP server of this process; its base URL."""
    host, port = Host(), free_port()
    await host.apply(Hosting(config=settings, files={MODEL: str(model_file())}, versions={MODEL: "1"}))
    server = uvicorn.Server(uvicorn.Config(build_app(host.gates, host.figures, Access()), port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())

    async def stop() -> None:
        server.should_exit = True
        await serving
        await host.close()

    stack.push_async_callback(stop)
    while not server.started:
        await asyncio.sleep(0.05)
    return f"http://127.0.0.1:{port}"


async def measure(url: str, settings: ServeConfig, rounds: int, per_client: int) -> dict[int, dict[str, Any]]:
    """For each number of clients, by side: medians over rounds of tokens a second and of milliseconds to the first token."""
    async with AsyncExitStack() as stack:
        backend = make_backend(settings.models[0], model_file(), settings)
        await backend.start()
        stack.push_async_callback(backend.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        plain = await without_ray(stack, settings)
        sides = {"bare": from_backend(backend), "plain_http": over_http(session, plain), "ray": over_http(session, url)}
        return {count: await compare(sides, count, rounds, per_client) for count in CLIENTS}


async def compare(sides: dict[str, Ask], num_clients: int, rounds: int, per_client: int) -> dict[str, Any]:
    """All sides in turns, in an order that rotates."""
    names, found = list(sides), {name: list[tuple[float, float]]() for name in sides}
    work = prompts(num_clients * per_client)
    for round_number in range(-1, rounds):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            started = time.perf_counter()
            answers = await run_clients(sides[name], num_clients, work)
            if round_number >= 0:
                found[name].append(figures(answers, time.perf_counter() - started))
    return {name: medians_of(rows) for name, rows in found.items()}


def medians_of(rows: list[tuple[float, float]]) -> dict[str, float]:
    """Of a side's rounds."""
    rates, firsts = zip(*rows, strict=True)
    return {"tokens_per_second": round(statistics.median(rates), 1), "first_ms": round(statistics.median(firsts), 1)}


def figures(answers: list[Timed], seconds: float) -> tuple[float, float]:
    """Tokens a second of all clients, and the median of milliseconds to the first token."""
    return sum(answer.num_tokens for answer in answers) / seconds, 1000 * statistics.median(answer.first for answer in answers)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=4, help="of each client, a round")
    parser.add_argument("--threads", type=int, default=cores(), help="of an engine")
    arguments = parser.parse_args()
    settings = config(arguments.threads)
    with deployed(settings) as url:
        found = asyncio.run(measure(url, settings, arguments.rounds, arguments.answers))
    shares = {count: sides["ray"]["tokens_per_second"] / sides["bare"]["tokens_per_second"] for count, sides in found.items()}
    later = {count: round(sides["ray"]["first_ms"] - sides["bare"]["first_ms"], 1) for count, sides in found.items()}
    report(
        "serve_overhead",
        min(shares.values()),
        "x of the bare engine's tokens a second, the worse of 1 and 8 clients",
        goal=GOAL,
        better="higher",
        peers={count: sides["plain_http"] for count, sides in found.items()},
        detail={
            "share": {count: round(share, 4) for count, share in shares.items()},
            "first_token_ms_more": later,
            "first_token_goal_met": max(later.values()) <= GOAL_MILLISECONDS,
            "sides": found,
            "threads": arguments.threads,
        },
    )


if __name__ == "__main__":
    main()
