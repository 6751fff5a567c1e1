"""p values by their definitions, and Benjamini-Hochberg against scipy."""

import numpy as np
import pytest
import scipy.stats

from diffing.statistics.hypothesis import benjamini_hochberg, upper_p


def test_upper_p_counts_the_observation_and_what_is_equal_up_to_rounding() -> None:
    """Breaks if a permutation that changes nothing is no hit, or a p can be 0."""
    assert upper_p(0.3, np.array([0.1 + 0.2, 0.3 - 1e-14, 0.2])) == 3 / 4
    assert upper_p(1.0, np.zeros(9)) == 1 / 10


@pytest.mark.parametrize("tests", [1, 2, 50])
def test_benjamini_hochberg_equals_scipy(tests: int) -> None:
    p = np.random.default_rng(tests).uniform(size=tests) ** 3
    p[tests // 2 :] = p[tests // 2]  # ties
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p), rtol=1e-12)


def test_benjamini_hochberg_by_its_definition_and_without_the_untested() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan, 0.005])
    # m = 4: 0.005*4/1 = 0.02, 0.01*4/2 = 0.02, 0.03*4/3 = 0.04, 0.04*4/4 = 0.04
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.04, 0.04, np.nan, 0.02], rtol=1e-12)
    assert np.isnan(benjamini_hochberg(np.array([np.nan, np.nan]))).all()
