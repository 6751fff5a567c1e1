"""Intervals against numpy and scipy."""

import numpy as np
import pytest
import scipy.stats
from scipy.stats import binomtest

from diffing.statistics import intervals
from diffing.statistics.intervals import percentile_ends, percentile_interval, t_interval, wilson_interval


def test_intervals_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    means = np.random.default_rng(2).normal(size=(100, 30))
    expected = np.quantile(means, [0.05, 0.95], axis=0)
    monkeypatch.setattr(intervals, "_BLOCK_VALUES", 700)
    np.testing.assert_allclose(percentile_ends(means, 0.9), expected, rtol=1e-14)


def test_percentile_interval() -> None:
    assert percentile_interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def test_percentile_interval_is_of_replicates_that_have_a_value() -> None:
    assert percentile_interval(np.array([2.0, np.nan, 2.0])) == (2, 2)
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()


@pytest.mark.parametrize("correct", [0, 13, 20])
def test_wilson_interval_is_scipys(correct: int) -> None:
    expected = binomtest(correct, 20).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct / 20, 20) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_t_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=12)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((values.mean(), expected.low, expected.high))
