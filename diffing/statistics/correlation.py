"""How far one number of a case predicts another: Pearson's and Spearman's correlations with intervals over units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.stats import rankdata

from diffing.statistics.bootstrap import draw_cases
from diffing.statistics.hypothesis import monte_carlo_p
from diffing.statistics.intervals import CONFIDENCE, Estimate, percentile_interval

# Variance below which a number counts as constant, relative to its mean square.
_ROUNDING = 1e-18


@dataclass(frozen=True)
class Correlation:
    """Pearson's r.

    Attributes:
        r: NaN where one of both numbers does not vary.
        low, high: 95% bootstrap in which cases of one unit come together.
        cases, units: How many.
    """

    r: float
    low: float
    high: float
    cases: int
    units: int


@dataclass(frozen=True)
class RandomCorrelations:
    """What random directions reach in place of the direction that was asked about.

    Attributes:
        random_mean: Mean absolute r.
        random_high: What 95% of them stay below.
        p: Share that is at least as strong, the direction itself counted in.
    """

    random_mean: float
    random_high: float
    p: float


def pearson(
    one: Float64[np.ndarray, "case"],
    other: Float64[np.ndarray, "case"],
    units: Sequence[str],
    replicates: int,
    seed: int,
) -> Correlation:
    """Pearson's r, with a bootstrap over units.

    Args:
        one, other: Two numbers of each case.
        units: What is drawn: cases with the same name come together.
        replicates: Of the bootstrap.
        seed: Of the draws.
    """
    if not len(units):
        return Correlation(np.nan, np.nan, np.nan, 0, 0)
    r = _pearson_once(one, other)
    low, high = percentile_interval(_pearson(one, other, draw_cases(units, replicates, seed)))
    ends = (np.nan, np.nan) if np.isnan(r) else (low, high)
    return Correlation(r, *ends, len(one), len(set(units)))


def random_correlations(
    r: float, random: Float64[np.ndarray, "direction case"], other: Float64[np.ndarray, "case"]
) -> RandomCorrelations:
    """The same correlation for random directions, whose sign means nothing.

    Args:
        r: Of the direction that was asked about.
        random: Projections on random directions.
        other: The number that is predicted.
    """
    found = np.abs([_pearson_once(row, other) for row in random])
    found = found[~np.isnan(found)]
    if np.isnan(r) or not len(found):
        return RandomCorrelations(np.nan, np.nan, np.nan)
    p = float(monte_carlo_p(found >= abs(r)))
    return RandomCorrelations(float(found.mean()), float(np.quantile(found, CONFIDENCE)), p)


def spearman(one: Float64[np.ndarray, "case"], other: Float64[np.ndarray, "case"]) -> float:
    """Spearman's rank correlation; NaN where one of both does not vary, or there are no cases.

    scipy's also computes a p and warns where there is no correlation; resampling asks for thousands.
    """
    if not len(one):
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def unit_ranks(values: Float64[np.ndarray, "case"]) -> Float64[np.ndarray, "case"]:
    """Ranks, centred and scaled to length 1, so that the product of two is their correlation; NaN if all tie."""
    ranks = rankdata(values)
    ranks -= ranks.mean()
    with np.errstate(invalid="ignore"):
        return ranks / np.linalg.norm(ranks)


def rank_correlation(
    scores: Float64[np.ndarray, "case"],
    rates: Float64[np.ndarray, "case"],
    units: Sequence[str],
    replicates: int,
    seed: int,
) -> Estimate:
    """Spearman's correlation, with a bootstrap over units as in `pearson`; all NaN where one does not vary."""
    value = spearman(scores, rates)
    return Estimate(value, *percentile_interval(_spearman(scores, rates, draw_cases(units, replicates, seed))))


def _spearman(
    one: Float64[np.ndarray, "case"],
    other: Float64[np.ndarray, "case"],
    weights: Int[np.ndarray, "replicate case"],
) -> Float64[np.ndarray, "replicate"]:
    """Correlation of ranks where each case stands there `weights` times; NaN where one of both does not vary."""
    centred = []
    for values in (one, other):
        column = values[:, None]
        # Ties get the mean of their ranks.
        ranks = weights @ ((column < values) + 0.5 * (column == values))
        centred.append(ranks - (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True))
    covariance = (weights * centred[0] * centred[1]).sum(1)
    scale = np.sqrt(np.prod([(weights * ranks**2).sum(1) for ranks in centred], axis=0))
    return np.divide(covariance, scale, out=np.full(len(weights), np.nan), where=scale > 1e-9)


def _pearson_once(one: Float64[np.ndarray, "case"], other: Float64[np.ndarray, "case"]) -> float:
    return float(_pearson(one, other, np.ones((1, len(one)), dtype=np.int64))[0])


def _pearson(
    one: Float64[np.ndarray, "case"], other: Float64[np.ndarray, "case"], weights: Int[np.ndarray, "replicate case"]
) -> Float64[np.ndarray, "replicate"]:
    """r where each case stands there `weights` times; NaN where one of both does not vary."""
    share = weights / weights.sum(1, keepdims=True)
    first, second = one - one.mean(), other - other.mean()
    means = share @ first, share @ second
    variances = [share @ values**2 - mean**2 for values, mean in zip((first, second), means, strict=True)]
    covariance = share @ (first * second) - means[0] * means[1]
    varies = (variances[0] > _ROUNDING * (one**2).mean()) & (variances[1] > _ROUNDING * (other**2).mean())
    scale = np.sqrt(np.where(varies, variances[0] * variances[1], np.nan))
    return np.clip(covariance / scale, -1, 1)
