"""Charts as inline SVG, small enough to write by hand: lines over tokens, and dots on a logarithmic axis.

Colours are CSS classes (`s0`, `s1`, ...: stroke and fill), so that the page's light and dark schemes apply; dots differ in their
marker too, and every curve has a chart or a stretch of its own, so that colour is never the only sign. Coordinates are in pixels
of the viewBox with one decimal.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from markupsafe import Markup

from wfray.report.numbers import tick

MAX_POINTS = 160
MARKERS = ("circle", "diamond", "square", "triangle", "ring")


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One SVG element; `_` in a name becomes `-`, `class_` is `class`."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    text = "".join(f' {key}="{escape(value if isinstance(value, str) else pixel(value))}"' for key, value in pairs)
    return f"<{name}{text}>{content}</{name}>"


def pixel(value: object) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def label(text: str, x: float, y: float, anchor: str = "start", class_: str = "tick") -> str:
    """Text at a point."""
    return tag("text", escape(text), x=x, y=y, text_anchor=anchor, class_=class_)


@dataclass(frozen=True)
class Axis:
    """Maps values `low..high` to pixels `start..end`, linearly or logarithmically."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values within the axis."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= 0.72 * raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between `low` and `high`; with 2 and 5 times them where fewer than three fit; every second beyond eight."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    if len(powers) < 3:
        powers = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return powers[:: 2 if len(powers) > 8 else 1]


def padded(values: Iterable[float]) -> tuple[float, float]:
    """A range that holds the values with some air, from 0 where that is near or where there is one value only; never empty."""
    listed = list(values)
    low, high = min(listed), max(listed)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = 0.0 if low >= 0 and (low < 0.5 * (high + air) or low == high) else low - air
    return bottom, high + air


def binned(points: Sequence[tuple[float, float]], num_bins: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `num_bins` points: the means of equal shares of consecutive ones."""
    if len(points) <= num_bins:
        return list(points)
    edges = [round(index * len(points) / num_bins) for index in range(num_bins + 1)]
    parts = [points[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


@dataclass(frozen=True)
class Line:
    """One curve."""

    points: Sequence[tuple[float, float]]
    colour: int = 0


@dataclass(frozen=True)
class Mark:
    """One labelled point."""

    x: float
    y: float
    text: str
    colour: int = 1
    shape: str = "circle"


@dataclass(frozen=True)
class Level:
    """A horizontal line across the chart with its name."""

    y: float
    text: str


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis."""

    start: float
    end: float
    text: str


@dataclass
class LineChart:
    """Curves over one x axis, which begins at 0."""

    description: str
    """What a person who cannot see it should know."""
    lines: list[Line]
    width: int
    height: int
    x_label: str = "tokens"
    y_label: str = ""
    marks: list[Mark] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)

    def svg(self) -> Markup:
        """The chart."""
        xs = [x for line in self.lines for x, _ in line.points] + [mark.x for mark in self.marks]
        ys = [y for line in self.lines for _, y in line.points] + [m.y for m in self.marks] + [level.y for level in self.levels]
        low, high = padded(ys)
        left = 16 + 6.5 * max(len(tick(value)) for value in linear_ticks(low, high, 4))
        right = 14 if self.width < 600 else 20
        x_axis = Axis(0.0, max(xs), left, self.width - right)
        y_axis = Axis(low, high, self.height - 34, 26 if self.bands or self.y_label else 12)
        parts = [*self._bands(x_axis, y_axis), *self._grid(x_axis, y_axis), *self._levels(x_axis, y_axis)]
        parts += [curve(line, x_axis, y_axis) for line in self.lines]
        parts += [text for mark in self.marks for text in self._mark(mark, x_axis, y_axis)]
        return drawing(self.description, self.width, self.height, parts)

    def _grid(self, x_axis: Axis, y_axis: Axis) -> list[str]:
        parts = []
        for value in y_axis.ticks():
            y = y_axis.at(value)
            parts.append(tag("line", x1=x_axis.start, x2=x_axis.end, y1=y, y2=y, class_="grid"))
            parts.append(label(tick(value), x_axis.start - 6, y + 4, "end"))
        parts.append(tag("line", x1=x_axis.start, x2=x_axis.end, y1=y_axis.start, y2=y_axis.start, class_="axis"))
        for value in x_axis.ticks(max(3, self.width // 140)):
            parts.append(label(tick(value), x_axis.at(value), y_axis.start + 16, "middle"))
        parts.append(label(self.x_label, x_axis.end, self.height - 4, "end", "axis-name"))
        if self.y_label:
            parts.append(label(self.y_label, 4, 12, class_="axis-name"))
        return parts

    def _bands(self, x_axis: Axis, y_axis: Axis) -> list[str]:
        parts = []
        for number, band in enumerate(self.bands):
            start, end = x_axis.at(band.start), x_axis.at(band.end)
            height = y_axis.start - y_axis.end
            parts.append(tag("rect", x=start, y=y_axis.end, width=end - start, height=height, class_=f"band{number % 2}"))
            parts.append(label(band.text, (start + end) / 2, y_axis.end + 16, "middle", "band-name"))
        return parts

    def _levels(self, x_axis: Axis, y_axis: Axis) -> list[str]:
        parts = []
        for level in self.levels:
            y = y_axis.at(level.y)
            parts.append(tag("line", x1=x_axis.start, x2=x_axis.end, y1=y, y2=y, class_="level"))
            parts.append(label(level.text, x_axis.start + 6, y - 6, class_="mark-name"))
        return parts

    def _mark(self, mark: Mark, x_axis: Axis, y_axis: Axis) -> list[str]:
        x, y = x_axis.at(mark.x), y_axis.at(mark.y)
        near_start, near_end = x < x_axis.start + 40, x > x_axis.end - 40
        anchor = "start" if near_start else "end" if near_end else "middle"
        return [marker(mark.shape, x, y, mark.colour), label(mark.text, x + (9 if near_start else 0), y - 10, anchor, "mark-name")]


@dataclass(frozen=True)
class DotRow:
    """One row of a dot plot: a value for each series, None where there is none."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class DotPlot:
    """Rows of dots on one logarithmic axis: the same series in every row."""

    description: str
    rows: list[DotRow]
    width: int
    x_label: str
    row_height: int = 34

    def svg(self) -> Markup:
        """The chart; series i has colour i and marker i."""
        values = [value for row in self.rows for value in row.values if value is not None]
        low, high = min(values) / 1.25, max(values) * 1.25
        height = self.row_height * len(self.rows) + 40
        wide = self.width >= 600
        left = 16 + (7.2 * max(len(row.name) for row in self.rows) if wide else 0)
        axis = Axis(low, high, left, self.width - 16, log=True)
        bottom = height - 34
        parts = [tag("line", x1=axis.at(v), x2=axis.at(v), y1=8, y2=bottom, class_="grid") for v in axis.ticks()]
        parts += [label(tick(value), axis.at(value), bottom + 15, "middle") for value in axis.ticks()]
        parts.append(label(self.x_label, axis.end, height - 4, "end", "axis-name"))
        for number, row in enumerate(self.rows):
            y = 8 + self.row_height * (number + (0.5 if wide else 0.7))
            name_at = (left - 10, y + 4, "end") if wide else (left, y - 11, "start")
            parts.append(label(row.name, *name_at, class_="row-name"))
            parts.append(dots(row, axis, y))
        return drawing(self.description, self.width, height, parts)


def dots(row: DotRow, axis: Axis, y: float) -> str:
    """A row's markers on a line from its least to its largest value."""
    known = [(number, axis.at(value)) for number, value in enumerate(row.values) if value is not None]
    span = tag("line", x1=min(x for _, x in known), x2=max(x for _, x in known), y1=y, y2=y, class_="span")
    return span + "".join(marker(MARKERS[number % len(MARKERS)], x, y, number) for number, x in known)


def curve(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    """A polyline; a single point is a dot."""
    points = [(x_axis.at(x), y_axis.at(y)) for x, y in binned(line.points)]
    if len(points) == 1:
        return marker("circle", *points[0], line.colour)
    path = " ".join(f"{pixel(x)},{pixel(y)}" for x, y in points)
    return tag("polyline", points=path, class_=f"curve s{line.colour}")


def marker(shape: str, x: float, y: float, colour: int, radius: float = 5.0) -> str:
    """A sign at a point."""
    style = f"marker s{colour}"
    match shape:
        case "circle":
            return tag("circle", cx=x, cy=y, r=radius, class_=style)
        case "ring":
            return tag("circle", cx=x, cy=y, r=radius, class_=f"{style} hollow")
        case "square":
            return tag("rect", x=x - radius + 0.5, y=y - radius + 0.5, width=2 * radius - 1, height=2 * radius - 1, class_=style)
        case "diamond":
            corners = [(x, y - radius - 1.5), (x + radius + 1.5, y), (x, y + radius + 1.5), (x - radius - 1.5, y)]
        case "triangle":
            corners = [(x, y - radius - 1), (x + radius + 1, y + radius - 0.5), (x - radius - 1, y + radius - 0.5)]
        case _:
            raise ValueError(f"marker shape {shape!r} is not one of {', '.join(MARKERS)}")
    return tag("polygon", points=" ".join(f"{pixel(a)},{pixel(b)}" for a, b in corners), class_=style)


def key(number: int) -> Markup:
    """The sign of series `number` for a legend or a table's head."""
    sign = marker(MARKERS[number % len(MARKERS)], 8.0, 8.0, number)
    return Markup(f'<svg class="key" viewBox="0 0 16 16" aria-hidden="true">{sign}</svg>')


def drawing(description: str, width: int, height: float, parts: list[str]) -> Markup:
    """A whole SVG with its description."""
    head = f'<svg class="chart" viewBox="0 0 {width} {pixel(height)}" role="img" aria-label="{escape(description)}">'
    return Markup(head + "".join(parts) + "</svg>")
