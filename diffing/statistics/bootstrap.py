"""The bootstrap: how often each unit is drawn in each replicate, and what a ratio of sums comes to there."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int, Num

REPLICATES = 2000


@lru_cache(maxsize=16)
def draw_units(
    units: int, seed: int | tuple[int, ...] = 0, replicates: int = REPLICATES
) -> Int[np.ndarray, "replicate unit"]:
    """How often each unit is drawn in each replicate.

    One seed draws the same units in every call, so replicates of different numbers of the same units belong together.
    """
    # Arms, labels and models ask for the same draws again and again, so they are kept, and must not be written to.
    draws = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=replicates)
    draws.flags.writeable = False
    return draws


def draw_cases(
    units: Sequence[str], replicates: int, seed: int, positive: Bool[np.ndarray, "case"] | None = None
) -> Int[np.ndarray, "replicate case"]:
    """How often each case is drawn in each replicate, cases of one unit together.

    Args:
        units: What is drawn: cases with the same name come together.
        replicates: Number of replicates.
        seed: Of the draws.
        positive: Class of each case, if every class is to keep its number of units; cases of one unit are of one class.
    """
    names, unit = np.unique(units, return_inverse=True)
    is_positive = np.zeros(len(names), dtype=bool)
    if positive is not None:
        is_positive[unit] = positive
    draws = np.zeros((replicates, len(names)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for stratum in (is_positive, ~is_positive):
        if count := int(stratum.sum()):
            draws[:, stratum] = generator.multinomial(count, np.full(count, 1 / count), size=replicates)
    return draws[:, unit]


def resampled_ratio(
    parts: Num[np.ndarray, "unit"], totals: Num[np.ndarray, "unit"], seed: int = 0
) -> Float64[np.ndarray, "replicate"]:
    """Sum of `parts` over sum of `totals` (which are not negative) in every replicate; NaN where the latter is zero."""
    draws = draw_units(len(parts), seed)
    below = (draws @ totals).astype(np.float64)
    return np.divide(draws @ parts, below, out=np.full(len(draws), np.nan), where=below > 0)


def stability(replicates: Float64[np.ndarray, "replicate value"], top: int) -> Float64[np.ndarray, "value"]:
    """How often each value is among the `top` by size (all of them, where there are fewer)."""
    values = replicates.shape[1]
    if values <= top:
        return np.ones(values)
    counts = np.zeros(values)
    for means in replicates:
        counts[np.argpartition(-np.abs(means), top)[:top]] += 1
    return counts / len(replicates)
