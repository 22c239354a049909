"""Numbers as people read them."""

import pytest

from wfray.report import numbers


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (numbers.integer, 81920, "81,920"),
        (numbers.significant, 1234.5, "1,234"),
        (numbers.significant, 61.234, "61.2"),
        (numbers.significant, 0.0341, "0.0341"),
        (numbers.significant, 9.996, "10.00"),
        (numbers.significant, 2.13e-4, "2.13e-4"),
        (numbers.significant, 0.0, "0"),
        (numbers.significant, float("inf"), "inf"),
        (numbers.perplexity, 61.2345, "61.23"),
        (numbers.perplexity, 311.07, "311.1"),
        (numbers.perplexity, 148_252.4, "148,252"),
        (numbers.perplexity, 24_154_952.7, "24.2 million"),
        (numbers.num_bytes, 116_917_312, "116.9 MB"),
        (numbers.num_bytes, 2_500_000_000, "2.50 GB"),
        (numbers.num_bytes, 999, "999 bytes"),
        (numbers.memory, 5_798_205_850, "5.4 GiB"),
        (numbers.duration, 8.27, "8.3 s"),
        (numbers.duration, 192, "3 min 12 s"),
        (numbers.duration, 7500, "2 h 05 min"),
        (numbers.percent, 0.99612, "99.6%"),
        (numbers.percent, 0.99999, "99.9%"),
        (numbers.percent, 1.0, "100.0%"),
        (numbers.times, 2.317, "2.3×"),
        (numbers.times, 123.4, "123×"),
        (numbers.tick, 20000.0, "20k"),
        (numbers.tick, 1.5, "1.5"),
        (numbers.tick, 1e-5, "1e-5"),
    ],
)
def test_format(function: object, value: float, text: str) -> None:
    assert function(value) == text  # type: ignore[operator]
