"""How well scores tell two classes of cases (models, prompts) apart, with intervals over the cases."""

import math

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.optimize import root_scalar
from scipy.stats import rankdata

from diffing.statistics.intervals import Interval, normal_quantile


def auc(scores: Float64[np.ndarray, "case"], positive: Bool[np.ndarray, "case"]) -> float:
    """Share of pairs of a positive and a negative case in which the positive one is higher; ties count half."""
    ranks = rankdata(scores)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def resampled_aucs(
    scores: Float64[np.ndarray, "case"],
    positive: Bool[np.ndarray, "case"],
    weights: Int[np.ndarray, "replicate case"],
) -> Float64[np.ndarray, "replicate"]:
    """The AUC in each replicate of `draw_cases`."""
    above, below = scores[positive][:, None], scores[~positive]
    won = (above > below) + 0.5 * (above == below)
    drawn, others = weights[:, positive].astype(float), weights[:, ~positive].astype(float)
    return ((drawn @ won) * others).sum(1) / (drawn.sum(1) * others.sum(1))


def auc_interval(value: float, positives: int, negatives: int) -> Interval:
    """95% interval of an AUC that keeps its width at 0 and 1, where a bootstrap has none.

    Newcombe (2006, Statistics in Medicine 25:559-573), method 5: the theta with |value - theta| = z * sqrt(V(theta)),
    where V is Hanley and McNeil's (1982) variance with both class sizes in its brackets replaced by their mean.
    """
    z, size = normal_quantile(), (positives + negatives) / 2

    def excess(theta: float) -> float:
        brackets = 1 + (size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(value - theta) - z * math.sqrt(theta * (1 - theta) * brackets / (positives * negatives))

    tiny = 1e-12
    low = 0.0 if value <= tiny else root_scalar(excess, bracket=(0.0, value - tiny)).root
    high = 1.0 if value >= 1 - tiny else root_scalar(excess, bracket=(value + tiny, 1.0)).root
    return float(low), float(high)
