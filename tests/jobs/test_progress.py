"""The progress view follows real metrics files, on a terminal and on a plain stream."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

import jobs.progress
from jobs.progress import ProgressView, clock
from wfray.runs import MetricsLog


def plain_view(run: Path, stages: list[str]) -> tuple[ProgressView, io.StringIO]:
    stream = io.StringIO()
    return ProgressView(stages, run, Console(file=stream, width=100)), stream


def training_row(step: int, num_steps: int = 10) -> dict[str, float]:
    figures = {"step": step, "tokens": step * 2048, "loss": 6.0 - step / 10, "tokens_per_second": 1234.5}
    return {**figures, "progress": step / num_steps}


def test_plain_lines_at_start_and_end_and_seldom_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, stream = plain_view(tmp_path, ["pack", "pretrain"])
    with view, MetricsLog(tmp_path / "pretrain" / "metrics.jsonl") as metrics:
        view.start("pretrain")
        for step in range(1, 6):
            metrics.write(**training_row(step), time=time.time() + step)
            view.poll()
        assert len(stream.getvalue().splitlines()) == 1, "no line within the interval after the start"
        monkeypatch.setattr(jobs.progress, "INTERVAL_SECONDS", 0.0)
        metrics.write(**training_row(6), time=time.time() + 6)
        view.poll()
        view.poll()
        view.finish("pretrain", "done", 83.2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("pretrain: started")
    assert "60%, 12,288 tokens, loss 5.400, 1,234 tokens/s" in lines[1] and lines[1].endswith("left")
    assert "pretrain: done in 1:23, 12,288 tokens, loss 5.400" in lines[2]
    assert "\x1b" not in stream.getvalue()


def test_messages_of_other_stages_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.progress, "INTERVAL_SECONDS", 0.0)
    view, stream = plain_view(tmp_path, ["pack", "export", "serve"])
    with view, MetricsLog(tmp_path / "pack" / "metrics.jsonl") as metrics:
        view.start("pack")
        metrics.write(progress=0.5, message="[2 of 3] packed\n\nspeeches\n")
        view.poll()
        view.finish("pack", "failed", 3.0, "no space left")
        view.finish("export", "skipped", 0.0, "already done")
    assert "pack: 50%, [2 of 3] packed speeches" in stream.getvalue()
    assert "pack: failed in 0:03, no space left" in stream.getvalue()
    assert "export: skipped, already done" in stream.getvalue()


def test_only_whole_lines_are_read_and_a_file_cut_back_on_resume_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "pretrain" / "metrics.jsonl"
    view, _ = plain_view(tmp_path, ["pretrain"])
    stage = view.stages["pretrain"]
    with view:
        view.start("pretrain")
        view.poll()
        with MetricsLog(path) as metrics:
            for step in (1, 2, 3):
                metrics.write(**training_row(step))
        with path.open("a") as file:
            file.write('{"step": 4, "lo')
        view.poll()
        assert stage.latest["step"] == 3
        with MetricsLog(path, resume_step=2) as metrics:
            metrics.write(step=3, tokens=3 * 2048, loss=9.0, progress=0.3, time=time.time())
        view.poll()
        assert stage.latest["loss"] == 9.0


def test_eta_is_the_rest_at_the_pace_of_this_attempt(tmp_path: Path) -> None:
    view, _ = plain_view(tmp_path, ["pretrain"])
    stage = view.stages["pretrain"]
    path = tmp_path / "pretrain" / "metrics.jsonl"
    now = time.time()
    with MetricsLog(path) as metrics:
        metrics.write(**{**training_row(1), "time": now - 5000})
        view.start("pretrain")
        stage.started = now - 60
        view.poll()
        assert stage.fraction is None and stage.eta is None, "an earlier attempt tells nothing of this one"
        metrics.write(**{**training_row(2), "time": now - 20})
        metrics.write(**{**training_row(4), "time": now})
        view.poll()
    assert stage.eta == pytest.approx(60.0, abs=2.0)


def test_the_terminal_table_shows_every_state(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=130, force_terminal=True, color_system=None)
    with ProgressView(["pack", "convert", "align", "serve"], tmp_path, console) as view:
        view.finish("pack", "skipped", 0.0, "already done")
        view.start("convert")
        view.finish("convert", "failed", 4.0, "unknown family 'gpt2'")
        view.start("align")
        with MetricsLog(tmp_path / "align" / "metrics.jsonl") as metrics:
            metrics.write(**training_row(5))
        view.poll()
    final = " ".join(stream.getvalue()[stream.getvalue().rfind("progress") :].split())
    states = ["↷ pack", "✘ convert", "▶ align", "· serve", "waiting"]
    for text in [*states, "already done", "unknown family 'gpt2'", "50%", "10,240 tokens, loss 5.500"]:
        assert text in final, text
    assert "1 of 4 stages" in final


def test_the_figures_of_training_fit_into_eighty_columns(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    with ProgressView(["pretrain"], tmp_path, console) as view, MetricsLog(tmp_path / "pretrain" / "metrics.jsonl") as metrics:
        view.start("pretrain")
        metrics.write(**training_row(5))
        view.poll()
    assert "10,240 tokens, loss 5.500" in stream.getvalue()


def test_a_poll_without_news_is_cheap(tmp_path: Path) -> None:
    view, _ = plain_view(tmp_path, ["pretrain"])
    with MetricsLog(tmp_path / "pretrain" / "metrics.jsonl") as metrics:
        for step in range(20_000):
            metrics.write(**training_row(step, 20_000))
    view.start("pretrain")
    seconds = []
    for polls in (1, 100):
        begun = time.process_time()
        for _ in range(polls):
            view.poll()
        seconds.append((time.process_time() - begun) / polls)
    assert seconds[1] < seconds[0] / 10, "a poll must not read the file again"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (605, "10:05"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
