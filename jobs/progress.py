"""One live view of a pipeline: a table that redraws itself on a terminal, plain lines everywhere else.

The view follows each stage's `metrics.jsonl` from outside, so it shows the same for a stage that runs in this process, in a Ray
job or on another machine that shares the run directory. A plain stream (a file, a CI log) gets one line at the start and one at
the end of a stage, and in between at most one every `INTERVAL_SECONDS`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wfray.runs.tail import MetricsTail

INTERVAL_SECONDS = 5.0

State = Literal["waiting", "running", "done", "skipped", "failed"]
MARKS: dict[State, tuple[str, str]] = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "done": ("✔", "green"),
    "skipped": ("↷", "blue"),
    "failed": ("✘", "bold red"),
}


@dataclass
class StageProgress:
    """What is known of one stage: its state, its newest figures, and this attempt's first row, from which the pace is taken."""

    name: str
    tail: MetricsTail
    state: State = "waiting"
    started: float = 0.0
    seconds: float | None = None
    note: str = ""
    latest: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] | None = None

    def poll(self) -> None:
        """Take in the rows written since the last call; those of an earlier attempt are none of this one's."""
        for row in self.tail.read():
            if row["time"] < self.started:
                continue
            self.latest.update(row)
            if self.first is None and "progress" in row:
                self.first = row

    @property
    def elapsed(self) -> float:
        """Seconds since the stage started, or that it took."""
        return self.seconds if self.seconds is not None else time.time() - self.started

    @property
    def fraction(self) -> float | None:
        """Part of the stage that is done, 0 to 1; None before the stage says."""
        return 1.0 if self.state in ("done", "skipped") else self.latest.get("progress")

    @property
    def eta(self) -> float | None:
        """Seconds left at the pace of this attempt; None before two rows tell a pace."""
        if self.state != "running" or self.first is None:
            return None
        gained = self.latest["progress"] - self.first["progress"]
        seconds = self.latest["time"] - self.first["time"]
        if gained <= 0 or seconds <= 0:
            return None
        pace = gained / seconds
        return max(0.0, (1 - self.latest["progress"]) / pace - (time.time() - self.latest["time"]))

    def figures(self) -> list[str]:
        """The newest figures, with units: tokens, loss, tokens/s, or the stage's own message."""
        if "loss" not in self.latest:
            message = " ".join(self.latest.get("message", "").split())
            return [message] if message else []
        figures = [f"{self.latest['tokens']:,} tokens", f"loss {self.latest['loss']:.3f}"]
        if rate := self.latest.get("tokens_per_second"):
            figures.append(f"{rate:,.0f} tokens/s")
        return figures

    def line(self) -> str:
        """One plain line: what the stage is doing."""
        parts = [f"{self.fraction:.0%}"] if self.fraction is not None else []
        parts += self.figures()
        if self.eta is not None:
            parts.append(f"{clock(self.eta)} left")
        return f"{self.name}: {', '.join(parts)}"


class ProgressView:
    """The live view; use as a context manager, call `poll` a few times a second or less."""

    def __init__(self, stages: list[str], run: Path, console: Console | None = None) -> None:
        """A view of `stages`, in order, whose directories stand below `run`; `console` is standard output unless given."""
        self.run = run
        self.console = console or Console()
        self.stages = {name: StageProgress(name, MetricsTail(run / name / "metrics.jsonl")) for name in stages}
        self.started = time.time()
        self._said: dict[str, tuple[float, str]] = {}
        live = Live(console=self.console, get_renderable=self.render, refresh_per_second=2)
        self._live = live if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def start(self, stage: str) -> None:
        """Mark `stage` as running from now."""
        progress = self.stages[stage]
        progress.state, progress.started, progress.first = "running", round(time.time(), 3), None
        self._say(stage, f"{stage}: started")

    def poll(self) -> None:
        """Read what the running stages have written since the last call: a few microseconds when there is nothing new."""
        for progress in self.stages.values():
            if progress.state == "running":
                progress.poll()
                self._say_sometimes(progress)

    def finish(self, stage: str, status: Literal["done", "skipped", "failed"], seconds: float, note: str = "") -> None:
        """Mark `stage` as ended after `seconds`; `note` stands in its line, for example what it made or why it failed."""
        progress = self.stages[stage]
        progress.poll()
        progress.state, progress.seconds, progress.note = status, seconds, note
        parts = [f"{stage}: {status}" + (f" in {clock(seconds)}" if status != "skipped" else "")]
        parts += [note] if note else progress.figures()
        self._say(stage, ", ".join(parts))

    def render(self) -> Table:
        """The table of the terminal view."""
        table = Table(box=None, pad_edge=False, expand=True, header_style="dim", caption_justify="left")
        table.add_column("")
        table.add_column("stage", no_wrap=True)
        table.add_column("progress", width=24 if self.console.width > 100 else 10)
        table.add_column("", justify="right", width=4)
        table.add_column("figures", ratio=1, overflow="ellipsis", no_wrap=True)
        table.add_column("time", justify="right", width=7)
        table.add_column("left", justify="right", width=7)
        for progress in self.stages.values():
            table.add_row(*cells(progress))
        num_ended = sum(progress.state in ("done", "skipped") for progress in self.stages.values())
        table.caption = f"{self.run}: {num_ended} of {len(self.stages)} stages, {clock(time.time() - self.started)}"
        return table

    def _say_sometimes(self, progress: StageProgress) -> None:
        said, line = self._said[progress.name]
        new = progress.line()
        if time.time() - said >= INTERVAL_SECONDS and new != line and progress.latest:
            self._say(progress.name, new)

    def _say(self, stage: str, line: str) -> None:
        self._said[stage] = (time.time(), line)
        if self._live is None:
            stamp = clock(time.time() - self.started)
            self.console.print(f"[{stamp}] {line}", markup=False, highlight=False, soft_wrap=True)


def cells(progress: StageProgress) -> list[Any]:
    """One row of the terminal table."""
    mark, style = MARKS[progress.state]
    ran = progress.state not in ("waiting", "skipped")
    fraction = progress.fraction
    return [
        Text(mark, style),
        Text(progress.name, style),
        ProgressBar(total=1.0, completed=fraction) if fraction is not None else Text(progress.state, "dim"),
        f"{fraction:.0%}" if fraction is not None else "",
        Text(progress.note or ", ".join(progress.figures()), "red" if progress.state == "failed" else ""),
        clock(progress.elapsed) if ran else "",
        clock(progress.eta) if progress.eta is not None else "",
    ]


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
