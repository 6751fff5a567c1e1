"""Correlations against numpy and scipy, and their intervals over units."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from diffing.statistics.correlation import _spearman, pearson, random_correlations, rank_correlation, spearman


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 6, 30).astype(float), draw.random(30) < 0.4


class TestPearson:
    def test_r_is_pearsons(self) -> None:
        one, noise = np.random.default_rng(0).normal(size=(2, 30))
        other = one + noise
        found = pearson(one, other, [str(i // 2) for i in range(30)], 200, 0)
        assert found.r == pytest.approx(np.corrcoef(one, other)[0, 1])
        assert found.low < found.r < found.high
        assert (found.cases, found.units) == (30, 15)

    def test_cases_of_one_unit_come_together(self) -> None:
        """Ten copies of each case tell no more than the case: breaks if the bootstrap draws cases."""
        one, noise = np.random.default_rng(1).normal(size=(2, 20))
        once = pearson(one, one + noise, [str(i) for i in range(20)], 500, 0)
        copies = pearson(np.tile(one, 10), np.tile(one + noise, 10), [str(i % 20) for i in range(200)], 500, 0)
        assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=0.05)

    def test_what_does_not_vary_has_no_r(self) -> None:
        found = pearson(np.arange(4.0), np.full(4, 50.0), list("abcd"), 10, 0)
        assert np.isnan([found.r, found.low, found.high]).all()
        assert np.isnan(random_correlations(found.r, np.ones((2, 4)), np.arange(4.0)).p)

    def test_random_directions(self) -> None:
        """Their sign means nothing; p counts the direction itself."""
        other = np.arange(4.0)
        random = np.stack([-other, [0.0, 1, 0, 0]])
        found = random_correlations(0.99, random, other)
        assert found.p == pytest.approx(2 / 3)


def test_spearman_is_scipys(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """With ties; breaks if they do not share their ranks, or no cases are an error."""
    scores, _ = scored
    rates = np.random.default_rng(2).integers(0, 4, 30) + scores
    assert spearman(scores, rates) == pytest.approx(float(np.asarray(spearmanr(scores, rates))[0]))
    assert np.isnan(spearman(scores, np.ones(30)))
    assert np.isnan(spearman(np.empty(0), np.empty(0)))


def test_rank_correlation_of_replicates_is_spearmans(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """With ties, and models that are drawn several times or not at all."""
    scores, _ = scored
    rates = np.random.default_rng(2).integers(0, 4, 30) + scores
    weights = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=5)
    for weight, value in zip(weights, _spearman(scores, rates, weights), strict=True):
        drawn = np.repeat(np.arange(30), weight)
        assert value == pytest.approx(float(np.asarray(spearmanr(scores[drawn], rates[drawn]))[0]))
    assert np.isnan(rank_correlation(np.zeros(30), rates, list("abcdef") * 5, 20, seed=0)).all()


def test_rank_correlation_counts_units_once(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """Checkpoints that stand there twice under one name make no interval narrower."""
    scores, _ = scored
    rates = rankdata(scores) + np.random.default_rng(1).normal(0, 8, 30)
    units = [f"{i:02}" for i in range(30)]
    once = rank_correlation(scores, rates, units, 300, seed=0)
    twice = rank_correlation(np.tile(scores, 2), np.tile(rates, 2), units * 2, 300, seed=0)
    assert once[0] == pytest.approx(float(np.asarray(spearmanr(scores, rates))[0]))
    assert once == pytest.approx(twice)
    assert once[1] < once[0] < once[2]
