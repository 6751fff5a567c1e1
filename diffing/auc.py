"""How well scores tell two classes of cases (models, prompts) apart, with intervals over the cases."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.optimize import root_scalar
from scipy.stats import norm, rankdata

from diffing.behavior.rates import CONFIDENCE
from diffing.ranking.inference import interval

Interval = tuple[float, float]


def auc(scores: Float64[np.ndarray, "case"], positive: Bool[np.ndarray, "case"]) -> float:
    """Share of pairs of a positive and a negative case in which the positive one is higher; ties count half."""
    ranks = rankdata(scores)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def resampled_weights(
    positive: Bool[np.ndarray, "case"], units: Sequence[str], replicates: int, seed: int
) -> Int[np.ndarray, "replicate case"]:
    """How often each model is drawn in each replicate of a bootstrap that is stratified by class.

    Args:
        positive: Class of each model.
        units: What is drawn: models with the same name come together, and are of one class.
        replicates: Number of replicates.
        seed: Of the draws.
    """
    names, unit = np.unique(units, return_inverse=True)
    is_positive = np.zeros(len(names), dtype=bool)
    is_positive[unit] = positive
    draws = np.zeros((replicates, len(names)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for stratum in (is_positive, ~is_positive):
        count = int(stratum.sum())
        draws[:, stratum] = generator.multinomial(count, np.full(count, 1 / count), size=replicates)
    return draws[:, unit]


def resampled_aucs(
    scores: Float64[np.ndarray, "case"],
    positive: Bool[np.ndarray, "case"],
    weights: Int[np.ndarray, "replicate case"],
) -> Float64[np.ndarray, "replicate"]:
    """The AUC in each replicate of `resampled_weights`."""
    above, below = scores[positive][:, None], scores[~positive]
    won = (above > below) + 0.5 * (above == below)
    drawn, others = weights[:, positive].astype(float), weights[:, ~positive].astype(float)
    return ((drawn @ won) * others).sum(1) / (drawn.sum(1) * others.sum(1))


def percentile_interval(draws: Float64[np.ndarray, "replicate"]) -> Interval:
    """Efron's percentile interval (95%)."""
    low, high = interval(draws[:, None], CONFIDENCE)
    return float(low[0]), float(high[0])


def score_interval(value: float, positives: int, negatives: int) -> Interval:
    """95% interval of an AUC that keeps its width at 0 and 1, where a bootstrap has none.

    Newcombe (2006, Statistics in Medicine 25:559-573), method 5: the theta with |value - theta| = z * sqrt(V(theta)),
    where V is Hanley and McNeil's (1982) variance with both class sizes in its brackets replaced by their mean.
    """
    z, size = float(norm.ppf((1 + CONFIDENCE) / 2)), (positives + negatives) / 2

    def excess(theta: float) -> float:
        brackets = 1 + (size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(value - theta) - z * math.sqrt(theta * (1 - theta) * brackets / (positives * negatives))

    tiny = 1e-12
    low = 0.0 if value <= tiny else root_scalar(excess, bracket=(0.0, value - tiny)).root
    high = 1.0 if value >= 1 - tiny else root_scalar(excess, bracket=(value + tiny, 1.0)).root
    return float(low), float(high)


def accuracy_interval(share: float, models: int) -> Interval:
    """Wilson's (1927) 95% interval of a share of independent models."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = share + z**2 / (2 * models)
    width = z * math.sqrt(share * (1 - share) / models + (z / (2 * models)) ** 2)
    low, high = ((centre + side * width) / (1 + z**2 / models) for side in (-1, 1))
    return float(low), float(high)


def rank_correlation(
    scores: Float64[np.ndarray, "case"],
    rates: Float64[np.ndarray, "case"],
    units: Sequence[str],
    replicates: int,
    seed: int,
) -> tuple[float, float, float]:
    """Spearman's correlation, low and high (95% bootstrap in which models of one unit come together).

    All NaN where scores or rates do not vary.
    """
    names, unit = np.unique(units, return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)[:, unit]
    once = np.ones((1, len(scores)), dtype=draws.dtype)
    value = float(_spearman(scores, rates, once)[0])
    values = _spearman(scores, rates, draws)
    defined = values[~np.isnan(values)]
    return (value, *percentile_interval(defined)) if len(defined) else (value, value, value)


def _spearman(
    one: Float64[np.ndarray, "case"],
    other: Float64[np.ndarray, "case"],
    weights: Int[np.ndarray, "replicate case"],
) -> Float64[np.ndarray, "replicate"]:
    """Correlation of ranks where each model stands there `weights` times; NaN where one of both does not vary."""
    centred = []
    for values in (one, other):
        column = values[:, None]
        # Ties get the mean of their ranks.
        ranks = weights @ ((column < values) + 0.5 * (column == values))
        centred.append(ranks - (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True))
    covariance = (weights * centred[0] * centred[1]).sum(1)
    scale = np.sqrt(np.prod([(weights * ranks**2).sum(1) for ranks in centred], axis=0))
    return np.divide(covariance, scale, out=np.full(len(weights), np.nan), where=scale > 1e-9)
