"""Following a file of metrics that is written, cut back, deleted and made anew."""

from pathlib import Path

from wfray.runs.tail import MetricsTail


def test_a_file_that_was_made_anew_is_read_from_its_start(tmp_path: Path) -> None:
    """Also where it has the number of the deleted one, as file systems give it, and is longer."""
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    for last in range(1, 20):
        path.write_text("".join(f'{{"step": {step}}}\n' for step in range(last)))
        assert [row["step"] for row in tail.read()] == list(range(last))
        path.unlink()
        assert tail.read() == []


def test_only_whole_rows_are_read_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    with path.open("w") as file:
        file.write('{"step": 1}\n{"st')
        file.flush()
        assert tail.read() == [{"step": 1}]
        file.write('ep": 2}\n')
        file.flush()
        assert tail.read() == [{"step": 2}] and tail.read() == []
    path.write_text('{"step": 1}\n')
    assert tail.read() == [{"step": 1}], "it was cut back"
