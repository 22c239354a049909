"""Charts: values stand where the axis says, ticks are round, and the SVG is well formed."""

import math
from xml.etree import ElementTree

import pytest

from wfray.report.charts import (
    MARKERS,
    Axis,
    Band,
    DotPlot,
    DotRow,
    Level,
    Line,
    LineChart,
    Mark,
    binned,
    linear_ticks,
    log_ticks,
    marker,
    padded,
)


def test_axes_map_their_ends_and_middles() -> None:
    assert [Axis(0, 10, 100, 200).at(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert Axis(1, 10_000, 0, 400, log=True).at(100) == pytest.approx(200)
    assert Axis(0, 10, 200, 100).at(2.5) == 175


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 10, 4, [0, 2, 4, 6, 8, 10]),
        (4.31, 5.02, 4, [4.4, 4.6, 4.8, 5.0]),
        (0, 1e-3, 4, [0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_linear_ticks_are_round_and_inside(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert linear_ticks(low, high, count) == pytest.approx(ticks)


def test_log_ticks() -> None:
    assert log_ticks(5, 250_000) == [10, 100, 1000, 10_000, 100_000]
    assert log_ticks(7, 90) == [10, 20, 50]
    assert len(log_ticks(1, 1e12)) <= 8


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [0.0], [-3.0, 5.0], [4.3, 4.9], [1e-9, 2e-9]])
def test_a_range_holds_its_values_and_is_never_empty(values: list[float]) -> None:
    low, high = padded(values)
    assert low <= min(values) <= max(values) < high
    assert linear_ticks(low, high, 4)


def test_binning_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), math.sin(x)) for x in range(1000)]
    means = binned(points, 100)
    assert len(means) == 100 and [x for x, _ in means] == sorted(x for x, _ in means)
    assert sum(y for _, y in means) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert binned(points[:5], 100) == points[:5]


def test_a_line_chart_draws_every_part_where_it_belongs() -> None:
    chart = LineChart(
        "falling",
        [Line([(0, 10.0), (50, 6.0), (100, 4.0)])],
        600,
        300,
        y_label="nats",
        marks=[Mark(100, 4.0, "end <4>")],
        levels=[Level(2.0, "teacher")],
        bands=[Band(0, 100, "align")],
    )
    root = ElementTree.fromstring(chart.svg())
    assert root.get("aria-label") == "falling" and root.get("role") == "img"
    path = next(element for element in root if element.tag == "polyline").get("points", "")
    xs, ys = zip(*(tuple(map(float, pair.split(","))) for pair in path.split()), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert (ys[1] - ys[0]) / (ys[2] - ys[1]) == pytest.approx(2, abs=0.02), "pixels go down twice as fast in the first half"
    dot = next(element for element in root if element.tag == "circle")
    assert (float(dot.get("cx", 0)), float(dot.get("cy", 0))) == pytest.approx((xs[2], ys[2]))
    assert {"end <4>", "teacher", "align", "tokens", "nats"} <= {element.text for element in root if element.tag == "text"}


def test_a_single_point_is_drawn() -> None:
    root = ElementTree.fromstring(LineChart("one step", [Line([(2048, 9.9)])], 240, 150).svg())
    assert [element.tag for element in root].count("circle") == 1


@pytest.mark.parametrize("width", [380, 1000])
def test_a_dot_plot_orders_dots_by_value_and_leaves_out_what_is_unknown(width: int) -> None:
    rows = [DotRow("code", [7.6, 95_798.0, None, 50.9]), DotRow("prose", [13.3, 167_711.0, 311.0, 89.1])]
    root = ElementTree.fromstring(DotPlot("perplexity", rows, width, "perplexity").svg())
    markers = [element for element in root if "marker" in element.get("class", "")]
    assert len(markers) == 7
    first = float(next(m for m in markers if m.tag == "circle").get("cx", 0))
    assert all(0 <= float(m.get("cx", first)) <= width for m in markers)


def test_every_marker_differs_and_an_unknown_one_is_refused() -> None:
    drawn = {marker(shape, 8.0, 8.0, 0) for shape in MARKERS}
    assert len(drawn) == len(MARKERS)
    with pytest.raises(ValueError, match="'star'"):
        marker("star", 0.0, 0.0, 0)
