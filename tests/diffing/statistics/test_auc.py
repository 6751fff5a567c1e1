"""AUCs against pairs counted one by one, and their intervals."""

import numpy as np
import pytest

from diffing.statistics.auc import auc, auc_interval, resampled_aucs
from diffing.statistics.bootstrap import draw_cases


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 6, 30).astype(float), draw.random(30) < 0.4


def brute_force_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))


def test_auc_is_the_share_of_pairs_in_order(scored: tuple[np.ndarray, np.ndarray]) -> None:
    assert auc(*scored) == pytest.approx(brute_force_auc(*scored))


def test_replicates_are_aucs_of_drawn_models(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """Every class keeps its size, and a weight of two is a model that stands there twice."""
    scores, positive = scored
    weights = draw_cases([str(i) for i in range(30)], 20, 1, positive)
    assert (weights[:, positive].sum(1) == positive.sum()).all()
    assert (weights.sum(1) == 30).all()
    found = resampled_aucs(scores, positive, weights)
    for weight, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(30), weight)
        assert value == pytest.approx(brute_force_auc(scores[drawn], positive[drawn]))


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9, 1.0])
def test_auc_interval_solves_its_equation(value: float) -> None:
    """Method 5 of Newcombe (2006): both ends are z standard errors of their own from the AUC."""
    low, high = auc_interval(value, 12, 20)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.1
    for end in {low, high} - {0.0, 1.0}:
        first, second = end / (2 - end), 2 * end**2 / (1 + end)
        size = (12 + 20) / 2
        variance = end * (1 - end) + (size - 1) * (first - end**2) + (size - 1) * (second - end**2)
        assert abs(value - end) == pytest.approx(1.959964 * np.sqrt(variance / (12 * 20)), rel=1e-4)


def test_auc_interval_covers() -> None:
    """Two normal classes with a true AUC of 0.921: 95% intervals of 400 samples."""
    draw = np.random.default_rng(0)
    positive = np.arange(35) < 15
    values = [auc(draw.normal(2.0 * positive, 1.0), positive) for _ in range(400)]
    ends = [auc_interval(value, 15, 20) for value in values]
    assert 0.92 <= np.mean([low <= 0.9214 <= high for low, high in ends]) <= 0.99
