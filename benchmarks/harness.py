"""What every benchmark shares: interleaved timing of all sides in one run, and the JSON line in which it ends.

A figure is a ratio or a count, never a bare time: machines differ and neighbours come and go. Sides take turns within a
round, in an order that rotates, so that a slow moment of the machine hits all of them; the medians over rounds are compared.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "ray", "numpy")


def interleave(sides: Mapping[str, Callable[[], object]], *, rounds: int = 7, warm_ups: int = 2) -> dict[str, list[float]]:
    """Time every side once a round.

    Args:
        sides: name -> what to time.
        rounds: how often; at least five.
        warm_ups: untimed calls of each side before.

    Returns:
        name -> seconds, in the order of the rounds.
    """
    assert rounds >= 5, "medians of fewer than five rounds say little"
    names = list(sides)
    for name in names * warm_ups:
        sides[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            started = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(
    name: str,
    value: float,
    unit: str,
    *,
    goal: float,
    better: Literal["lower", "higher"] = "lower",
    peers: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Print the result as the last line and append it to `benchmarks/results/<name>.jsonl`.

    Args:
        name: of the benchmark.
        value: the headline figure, the worst case where several are measured.
        unit: of `value`, for example "x of the bf16 step".
        goal: what `value` must reach.
        better: whether lower or higher values are better.
        peers: the same figure for other implementations, measured in the same run.
        detail: everything else that a reader needs to judge the figure.
    """
    met = value <= goal if better == "lower" else value >= goal
    row = {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "goal": f"{'<=' if better == 'lower' else '>='} {goal}",
        "met": met,
        "peers": dict(peers or {}),
        "detail": dict(detail or {}),
        "machine": machine(),
        "versions": versions(),
    }
    line = json.dumps(row)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)
    return row


def machine() -> dict[str, Any]:
    """The processor and how much of it this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "system": platform.system()}


def versions() -> dict[str, str]:
    """Python and the packages that decide a figure."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
