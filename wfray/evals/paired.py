"""Two models on the same items: the difference of their means with its confidence interval, and McNemar's test.

Items are paired, so what both models get right or wrong alike cancels: the standard error is that of the mean of the differences,
not the root of two variances. McNemar's exact test looks at the items on which right and wrong disagree: under the null
hypothesis each model wins half of them, a binomial distribution.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from pydantic import BaseModel

Z95 = 1.959963984540054


class Paired(BaseModel):
    """Second model minus first."""

    num_items: int
    difference: float
    stderr: float
    low: float
    """Of the 95% confidence interval."""
    high: float
    only_first: int | None = None
    """Items that the first model alone gets right; None where scores are not right or wrong."""
    only_second: int | None = None
    p_value: float | None = None
    """Of McNemar's exact test, two-sided."""


def compare(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare scores of the same items in the same order.

    Raises:
        ValueError: the numbers of items differ, or there are fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"a paired comparison needs the same items, two at least: there are {len(first)} and {len(second)}")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    difference, stderr = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    paired = Paired(
        num_items=len(first), difference=difference, stderr=stderr, low=difference - Z95 * stderr, high=difference + Z95 * stderr
    )
    if not set(first) | set(second) <= {0, 1}:
        return paired
    only_first, only_second = differences.count(-1), differences.count(1)
    return paired.model_copy(update={"only_first": only_first, "only_second": only_second, "p_value": mcnemar(only_first, only_second)})


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of `only_first` against `only_second` wins among the items on which two models differ."""
    num, fewer = only_first + only_second, min(only_first, only_second)
    log_choose = [math.lgamma(num + 1) - math.lgamma(k + 1) - math.lgamma(num - k + 1) for k in range(fewer + 1)]
    tail = math.fsum(math.exp(value - num * math.log(2)) for value in log_choose)
    return min(1.0, 2 * tail)


def wilson(num_right: int, num_items: int) -> tuple[float, float]:
    """The 95% confidence interval of a share (Wilson's), which stays between 0 and 1 and is right for few items too."""
    share, z2 = num_right / num_items, Z95**2 / num_items
    centre, half = share + z2 / 2, Z95 * math.sqrt(share * (1 - share) / num_items + z2 / (4 * num_items))
    return (centre - half) / (1 + z2), (centre + half) / (1 + z2)
