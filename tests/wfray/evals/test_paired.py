"""Paired comparison against scipy and against a simulation of its promise."""

import random

import pytest
from scipy.stats import binomtest, ttest_rel

from wfray.evals.paired import compare, mcnemar, wilson


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (0, 7), (5, 16), (40, 61), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_the_standard_error_is_that_of_paired_differences() -> None:
    generator = random.Random(0)
    first = [generator.random() for _ in range(50)]
    second = [value + generator.gauss(0.1, 0.2) for value in first]
    paired = compare(first, second)
    assert paired.difference / paired.stderr == pytest.approx(-ttest_rel(first, second).statistic)
    assert paired.p_value is None


def test_right_and_wrong_answers_are_counted_where_they_disagree() -> None:
    paired = compare([1, 1, 0, 0, 1], [1, 0, 1, 1, 1])
    assert (paired.only_first, paired.only_second) == (1, 2)
    assert paired.difference == pytest.approx(0.2)
    assert paired.p_value == pytest.approx(1.0)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator, hits = random.Random(1), 0
    for _ in range(1000):
        low, high = wilson(sum(generator.random() < 0.9 for _ in range(60)), 60)
        hits += low <= 0.9 <= high
    assert 0.92 < hits / 1000 < 0.98


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 2 and 3"):
        compare([1, 0], [1, 0, 1])
