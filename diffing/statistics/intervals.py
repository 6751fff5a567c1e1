"""Intervals: percentiles of replicates, Wilson's, Student's and the jackknife's. All have a coverage of 95%."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
Interval = tuple[float, float]

# Values of [replicate value] whose quantiles are taken at once.
_BLOCK_VALUES = 2**24
# Fisher's transform is infinite at 1.
_LARGEST_COSINE = 1 - 1e-12


class Estimate(NamedTuple):
    """A number with the ends of its interval."""

    point: float
    low: float
    high: float


def normal_quantile() -> float:
    """How many standard errors a two-sided interval of a normal estimate reaches to each side."""
    return float(ndtri((1 + CONFIDENCE) / 2))


def student_quantile(degrees: int, together: int = 1) -> float:
    """The same for Student's t.

    Args:
        degrees: Of freedom.
        together: Intervals that are to cover all at once, at the Bonferroni level (Dunn 1961).
    """
    return float(stdtrit(degrees, 1 - (1 - CONFIDENCE) / (2 * together)))


def percentile_ends(
    replicates: Float64[np.ndarray, "replicate value"], confidence: float = CONFIDENCE
) -> tuple[Float64[np.ndarray, "value"], Float64[np.ndarray, "value"]]:
    """Efron's percentile interval of every value: lower and upper ends; NaN for a value that is NaN in a replicate."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    width = max(1, _BLOCK_VALUES // len(replicates))
    # Quantiles along contiguous memory take half the time.
    blocks = [
        np.quantile(np.ascontiguousarray(replicates[:, start : start + width].T), tails, axis=1)
        for start in range(0, replicates.shape[1], width)
    ]
    low, high = np.concatenate(blocks, axis=1)
    return low, high


def percentile_interval(replicates: Float64[np.ndarray, "replicate"]) -> Interval:
    """Efron's percentile interval of one value, over the replicates that have one; NaN if none has."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = percentile_ends(defined[:, None])
    return float(low[0]), float(high[0])


def wilson_interval(share: float, cases: int) -> Interval:
    """Wilson's (1927) interval of a share of independent cases.

    `scipy.stats.binomtest` wants whole numbers. A share need not be one here: where cases hold several answers each,
    it is taken over the answers and its interval over the cases.
    """
    z = normal_quantile()
    centre = share + z**2 / (2 * cases)
    width = z * math.sqrt(share * (1 - share) / cases + (z / (2 * cases)) ** 2)
    low, high = ((centre + side * width) / (1 + z**2 / cases) for side in (-1, 1))
    return float(low), float(high)


def t_interval(values: Float64[np.ndarray, "case"]) -> Estimate:
    """Mean of independent cases with Student's interval."""
    mean, spread, count = float(values.mean()), float(values.std(ddof=1)), len(values)
    width = student_quantile(count - 1) * spread / count**0.5
    return Estimate(mean, mean - width, mean + width)


def jackknife_interval(cosine: float, without: Float64[np.ndarray, "case"]) -> Interval:
    """Student's interval of a cosine on the scale of Fisher's z, from its values without each case (Tukey 1958)."""
    n = len(without)
    z, z_without = (np.arctanh(np.clip(v, -_LARGEST_COSINE, _LARGEST_COSINE)) for v in (cosine, without))
    width = student_quantile(n - 1) * np.sqrt((n - 1) * z_without.var())
    return float(np.tanh(z - width)), float(np.tanh(z + width))
