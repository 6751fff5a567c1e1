"""How much of a direction is signal: agreement of directions from two halves of the prompts, and its sampling noise."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from activations.errors import UserError
from diffing.statistics.intervals import jackknife_interval

# Two halves, each of which still holds a pair when one is left out.
_FEWEST_PAIRS = 4


@dataclass(frozen=True)
class SplitHalf:
    """Split-half reliability of a difference-of-means direction.

    Attributes:
        pairs, splits: Numbers of pairs and of random splits.
        cosine: Mean cosine between the directions of both halves.
        low, high: Its 95% interval over pairs.
        spread: Standard deviation over splits, which says how little a single split tells.
        full: Spearman-Brown: expected cosine of two directions from as many pairs as there are.
        full_low, full_high: The same of `low` and `high`.
    """

    pairs: int
    splits: int
    cosine: float
    low: float
    high: float
    spread: float
    full: float
    full_low: float
    full_high: float


@dataclass(frozen=True)
class DirectionNoise:
    """Sampling noise of a difference-of-means direction.

    Attributes:
        pairs: Number of pairs.
        norm: Length of the direction.
        standard_error: Root mean square distance between the direction and that of endless pairs.
        signal_norm: Length without noise, estimated without bias before the root; 0 if noise explains all of it.
        truth_cosine: signal_norm / norm: expected cosine with the direction of endless pairs.
    """

    pairs: int
    norm: float
    standard_error: float
    signal_norm: float
    truth_cosine: float


def split_half(differences: Float[np.ndarray, "pair d_model"], splits: int = 1000, seed: int = 0) -> SplitHalf:
    """Mean cosine between directions of random halves of the pairs (Spearman 1910, Brown 1910, for vectors).

    Interval: pairs are left out one at a time in all splits (jackknife), on Fisher's z scale with Student's t. A
    bootstrap would put copies of a pair into both halves and make them agree. In simulations it covers in 92-100% of
    cases.

    Spearman-Brown, 2 c / (1 + c), turns the agreement of halves into that of two directions from all pairs. For
    cosines it is an approximation: it holds if pairs are independent and noise adds about the same squared length to
    every direction and no length along the signal, as in many dimensions with noise in each. In few dimensions, or with
    noise mostly along the signal, it is off. Below 0 it means nothing, and 0 is given. The `truth_cosine` of
    `direction_noise` is about its root.

    Args:
        differences: Positive - negative mean activation of each index-matched pair, one row an independent unit
            (average the samples of one question before). Pairs without tokens (NaN) are left out.
        splits: Random halves; with an odd number of pairs one half has one more.
        seed: Of the splits.

    Raises:
        UserError: if fewer than 4 pairs are left, a value is infinite, there is no split, or the differences are zero.
    """
    kept = _usable(differences)
    if splits < 1:
        raise UserError(f"Reliability needs at least 1 split, not {splits}; give a larger number.")
    half = np.random.default_rng(seed).permuted(np.tile(np.arange(len(kept)) % 2 == 0, (splits, 1)), axis=1)
    whole, without = _half_cosines(kept @ kept.T, half)
    cosine = float(whole.mean())
    low, high = jackknife_interval(cosine, without.mean(0))
    corrected = [2 * max(c, 0.0) / (1 + max(c, 0.0)) for c in (cosine, low, high)]
    return SplitHalf(len(kept), splits, cosine, low, high, float(whole.std()), *corrected)


def direction_noise(differences: Float[np.ndarray, "pair d_model"]) -> DirectionNoise:
    """Noise of the mean of the differences.

    standard_error = sqrt(trace(S) / n) with S the differences' covariance. The mean's squared length is by trace(S) / n
    too long on average, because noise adds length in every dimension.

    Raises:
        UserError: as `split_half`.
    """
    kept = _usable(differences)
    squared_norm = float(np.square(kept.mean(0)).sum())
    squared_error = float(kept.var(0, ddof=1).sum() / len(kept))
    signal = float(np.sqrt(max(0.0, squared_norm - squared_error)))
    norm = float(np.sqrt(squared_norm))
    return DirectionNoise(len(kept), norm, float(np.sqrt(squared_error)), signal, signal / norm if norm > 0 else 0.0)


def _half_cosines(
    gram: Float64[np.ndarray, "pair pair"], half: Bool[np.ndarray, "split pair"]
) -> tuple[Float64[np.ndarray, "split"], Float64[np.ndarray, "split pair"]]:
    """Cosine of both halves' directions in each split: with all pairs, and without each one.

    Only inner products of pairs are needed, and sums do as well as means, because cosines do not depend on length.
    """
    own = half.astype(np.float64)
    to_first, to_second = own @ gram, (1 - own) @ gram  # inner product of each pair with each half's sum
    first, second = (to_first * own).sum(1), (to_second * (1 - own)).sum(1)
    product = (to_first * (1 - own)).sum(1)
    towards_own, towards_other = np.where(half, to_first, to_second), np.where(half, to_second, to_first)
    shorter = np.where(half, first[:, None], second[:, None]) - 2 * towards_own + np.diag(gram)
    unchanged = np.where(half, second[:, None], first[:, None])
    return _cosine(product, first, second), _cosine(product[:, None] - towards_other, shorter, unchanged)


def _cosine(
    product: Float64[np.ndarray, "*shape"], first: Float64[np.ndarray, "*shape"], second: Float64[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Of an inner product and two squared lengths; 0 where a direction is zero."""
    lengths = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
    return np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)


def _usable(differences: Float[np.ndarray, "pair d_model"]) -> Float64[np.ndarray, "kept d_model"]:
    kept = differences[~np.isnan(differences).any(1)].astype(np.float64)
    if len(kept) < _FEWEST_PAIRS:
        raise UserError(
            f"Only {len(kept)} of {len(differences)} pairs have tokens and {_FEWEST_PAIRS} are needed; add prompts."
        )
    if not np.isfinite(kept).all():
        raise UserError("A difference of a pair is infinite; harvest the activations again in a wider dtype.")
    if not kept.any():
        raise UserError("The differences of all pairs are zero, so there is no direction; compare other prompts.")
    return kept
