"""How far one number of a case predicts another: Pearson's r with an interval over units, and random directions' r."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from diffing.auc import percentile_interval

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
class BesideRandom:
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
    names, unit = np.unique(units, return_inverse=True)
    if not len(names):
        return Correlation(np.nan, np.nan, np.nan, 0, 0)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    r = float(_weighted(one, other, np.ones((1, len(one)), dtype=draws.dtype))[0])
    drawn = _weighted(one, other, draws[:, unit])
    drawn = drawn[~np.isnan(drawn)]
    low, high = percentile_interval(drawn) if len(drawn) and not np.isnan(r) else (np.nan, np.nan)
    return Correlation(r, low, high, len(one), len(names))


def beside_random(
    r: float, random: Float64[np.ndarray, "direction case"], other: Float64[np.ndarray, "case"]
) -> BesideRandom:
    """The same correlation for random directions, whose sign means nothing.

    Args:
        r: Of the direction that was asked about.
        random: Projections on random directions.
        other: The number that is predicted.
    """
    nothing = BesideRandom(np.nan, np.nan, np.nan)
    if np.isnan(r):
        return nothing
    once = np.ones((1, len(other)), dtype=np.int64)
    found = np.abs([_weighted(row, other, once)[0] for row in random])
    found = found[~np.isnan(found)]
    if not len(found):
        return nothing
    p = (1 + int((found >= abs(r)).sum())) / (1 + len(found))
    return BesideRandom(float(found.mean()), float(np.quantile(found, 0.95)), p)


def _weighted(
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
