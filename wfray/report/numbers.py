"""Numbers for people: thousands separators, units, and no more digits than the measurement carries."""

import math


def integer(value: float) -> str:
    """`81,920`."""
    return f"{round(value):,}"


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant figures with separators, `1.2e-5` below a thousandth; 0 is `0`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-")
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def perplexity(value: float) -> str:
    """Two decimals below a hundred, one below a thousand, then whole; from a million on in millions."""
    if value >= 1e6:
        return f"{significant(value / 1e6)} million"
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def num_bytes(value: float) -> str:
    """Decimal units: `104.6 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{value:,.0f} bytes"


def memory(value: float) -> str:
    """Binary gigabytes, as memory is counted: `5.4 GiB`."""
    return f"{value / 2**30:,.1f} GiB"


def duration(seconds: float) -> str:
    """`8.3 s`, `3 min 12 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def percent(value: float, decimals: int = 1) -> str:
    """`99.6%` of a share; what is not all is never rounded up to 100%."""
    rounded = round(100 * value, decimals)
    if rounded == 100 and value < 1:
        rounded = 100 - 10**-decimals
    return f"{rounded:.{decimals}f}%"


def times(value: float) -> str:
    """`2.6×`, a ratio."""
    return f"{significant(value, 2 if value < 10 else 3)}×"


def tick(value: float) -> str:
    """A label on an axis: `20k`, `1.5`, `1e-4`, without digits that say nothing."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}".replace("e-0", "e-")
