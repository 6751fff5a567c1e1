"""Reliability of directions: every split of few pairs written out, planted signal and noise, calibrated intervals."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from activations.errors import UserError
from diffing.personality.reliability import direction_noise, split_half


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pairs_of(signal: float, n: int, d_model: int, seed: int) -> np.ndarray:
    """Differences with noise of variance 1 in every dimension around a direction of this length."""
    rows = np.random.default_rng(seed).normal(size=(n, d_model))
    rows[:, 0] += signal
    return rows


def mean_of_all_splits(differences: np.ndarray) -> float:
    n = len(differences)
    halves = [list(half) for half in combinations(range(n), (n + 1) // 2)]
    means = [(differences[half].mean(0), np.delete(differences, half, 0).mean(0)) for half in halves]
    return float(np.mean([cosine(*both) for both in means]))


@pytest.mark.parametrize("n", [6, 7])
def test_equals_all_splits_written_out(n: int) -> None:
    """Breaks if halves overlap, leave a pair out, or are not drawn with equal probability; NaN pairs are left out."""
    differences = pairs_of(1.0, n, 5, seed=n)
    with_gap = np.insert(differences, 2, np.nan, axis=0)
    found = split_half(with_gap, splits=4000)
    assert (found.pairs, found.splits) == (n, 4000)
    assert abs(found.cosine - mean_of_all_splits(differences)) < 4 * found.spread / np.sqrt(4000)
    assert found == split_half(differences, splits=4000)
    assert found != split_half(differences, splits=4000, seed=1)


def test_the_interval_is_the_jackknife_written_out() -> None:
    """Breaks if a left-out pair stays in a sum or in a length (6 pairs without one have 2 + 3: all such splits)."""
    differences = pairs_of(2.0, 6, 4, seed=0)
    without = []
    for left_out in range(6):
        values = []
        for half in combinations(range(6), 3):
            kept = [i for i in half if i != left_out]
            others = [i for i in range(6) if i not in half and i != left_out]
            values.append(cosine(differences[kept].sum(0), differences[others].sum(0)))
        without.append(np.mean(values))
    z = np.arctanh(without)
    width = scipy.stats.t.ppf(0.975, 5) * np.sqrt(5 * z.var())
    middle = np.arctanh(mean_of_all_splits(differences))
    found = split_half(differences, splits=20_000)
    assert (found.low, found.high) == pytest.approx((np.tanh(middle - width), np.tanh(middle + width)), abs=0.02)


def test_the_interval_covers_as_promised() -> None:
    """Breaks if the interval shrinks with the number of splits, which know nothing of other prompts."""
    truth = np.mean([split_half(pairs_of(2.0, 16, 40, seed=i), splits=20).cosine for i in range(1000, 2000)])
    found = [split_half(pairs_of(2.0, 16, 40, seed=i), splits=60) for i in range(200)]
    covered = sum(f.low <= truth <= f.high for f in found)
    assert covered >= scipy.stats.binom.ppf(0.005, 200, 0.95)
    assert np.mean([f.high - f.low for f in found]) < 0.5


def test_spearman_brown_foretells_directions_of_all_pairs() -> None:
    """Breaks if the correction is left out or applied twice; holds here because noise is in each of many dimensions."""
    signal, n, d_model = 3.0, 20, 200
    found = [split_half(pairs_of(signal, n, d_model, seed=i), splits=20) for i in range(60)]
    means = [pairs_of(signal, n, d_model, seed=i).mean(0) for i in range(100, 220)]
    full = np.mean([cosine(means[2 * i], means[2 * i + 1]) for i in range(60)])
    assert np.mean([f.full for f in found]) == pytest.approx(full, abs=0.03)
    assert full == pytest.approx(signal**2 / (signal**2 + d_model / n), abs=0.03)
    assert np.mean([f.cosine for f in found]) < full - 0.1
    for f in found[:5]:
        assert f.full == pytest.approx(2 * f.cosine / (1 + f.cosine))
        assert f.full_low < f.full < f.full_high
    # Its root is about the cosine with the truth, and so is what `direction_noise` says.
    truth = np.mean([mean[0] / np.linalg.norm(mean) for mean in means])
    assert np.sqrt(full) == pytest.approx(truth, abs=0.02)
    said = [direction_noise(pairs_of(signal, n, d_model, seed=i)).truth_cosine for i in range(60)]
    assert np.mean(said) == pytest.approx(truth, abs=0.03)


def test_no_noise_and_nothing_but_noise() -> None:
    """Breaks if equal pairs are not perfectly reliable, or a cosine below zero is corrected to something."""
    same = split_half(np.tile([1.0, -2.0, 0.5], (8, 1)).astype(np.float32), splits=10)
    assert (same.cosine, same.low, same.high, same.full, same.spread) == pytest.approx((1, 1, 1, 1, 0), abs=1e-7)
    opposed = split_half(np.array([[1.0, 0.1], [-1.0, 0.1], [1.0, -0.1], [-1.0, -0.1]]), splits=200)
    assert opposed.cosine < 0
    assert opposed.full == opposed.full_low == 0
    noise = [split_half(pairs_of(0.0, 30, 50, seed=i), splits=50) for i in range(20)]
    assert abs(np.mean([f.cosine for f in noise])) < 0.05
    assert sum(f.low <= 0 <= f.high for f in noise) >= 17


def test_halves_without_direction_have_cosine_zero() -> None:
    """Breaks if a half whose differences cancel gives NaN."""
    found = split_half(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), splits=50)
    assert np.isfinite([found.cosine, found.low, found.high, found.full]).all()


def test_noise_of_a_direction() -> None:
    """Breaks if the error is of one pair instead of the mean, variances are not summed, or the bias stays."""
    signal, n, d_model = 0.7, 25, 60
    found = [direction_noise(pairs_of(signal, n, d_model, seed=i)) for i in range(300)]
    apart = [pairs_of(signal, n, d_model, seed=i).mean(0) - np.eye(d_model)[0] * signal for i in range(300)]
    squared = np.mean([np.square(a).sum() for a in apart])
    assert np.mean([f.standard_error**2 for f in found]) == pytest.approx(squared, rel=0.03)
    assert squared == pytest.approx(d_model / n, rel=0.05)
    unbiased = [f.norm**2 - f.standard_error**2 for f in found]
    assert abs(np.mean(unbiased) - signal**2) < 4 * np.std(unbiased) / np.sqrt(300)
    for f, difference in zip(found, unbiased, strict=True):
        assert f.signal_norm == pytest.approx(max(0, difference) ** 0.5, abs=1e-7)
        assert f.truth_cosine == pytest.approx(f.signal_norm / f.norm, abs=1e-12)
    cancelled = direction_noise(np.array([[1.0], [-1.0], [2.0], [-2.0]]))
    assert (cancelled.norm, cancelled.truth_cosine) == (0, 0)


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        (np.ones((3, 4)), "Only 3 of 3 pairs have tokens and 4 are needed"),
        (np.array([[np.nan, 1.0]] * 3 + [[1.0, 1.0]] * 3), "Only 3 of 6"),
        (np.array([[np.inf, 1.0]] * 5), "infinite"),
        (np.zeros((5, 2)), "differences of all pairs are zero"),
    ],
)
def test_bad_input(differences: np.ndarray, message: str) -> None:
    """Breaks if differences that have no direction, or no halves, give a reliability."""
    for method in (split_half, direction_noise):
        with pytest.raises(UserError, match=message):
            method(differences)
    with pytest.raises(UserError, match="at least 1 split"):
        split_half(np.random.default_rng(0).normal(size=(6, 3)), splits=0)
