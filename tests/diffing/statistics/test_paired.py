"""Paired differences: against scipy, against slow resampling, and calibrated under the null."""

import numpy as np
import pytest
import scipy.stats
import torch

from diffing.statistics import paired
from diffing.statistics.hypothesis import sign_flip_p
from diffing.statistics.intervals import percentile_ends
from diffing.statistics.paired import Moments, Replicates


def normal(rows: int, columns: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1.0, size=(rows, columns)))


def ids(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def replicates_of(differences: torch.Tensor, replicates: int, seed: int = 0, part: int = 7) -> Replicates:
    made, names = Replicates(replicates, differences.shape[1], seed), ids(len(differences))
    for start in range(0, len(differences), part):
        made.add(names[start : start + part], differences[start : start + part])
    return made


@pytest.mark.parametrize("part", [1, 4, 17])
def test_paired_t_equals_scipy_however_the_rows_come(part: int) -> None:
    generator = np.random.default_rng(0)
    base, other = generator.normal(1e3, 1, size=(2, 17, 40))
    moments = Moments(40)
    for rows in torch.from_numpy(other - base).split(part):
        moments.add(rows)
    t, p = moments.paired_t()
    expected = scipy.stats.ttest_rel(other, base)
    np.testing.assert_allclose(t, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-9)


def test_paired_t_without_spread() -> None:
    moments = Moments(3)
    moments.add(torch.tensor([[0.0, 0.5, -0.5]] * 4, dtype=torch.float64))
    t, p = moments.paired_t()
    assert t.tolist() == [0.0, np.inf, -np.inf]
    assert p.tolist() == [1.0, 0.0, 0.0]


def test_replicates_do_not_depend_on_order_or_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if weights belong to places in the stream instead of prompts."""
    differences, names = normal(50, 6, seed=1), ids(50)
    whole = replicates_of(differences, 40, part=50)
    monkeypatch.setattr(paired, "_GATHERED_VALUES", 6 * 9)
    shuffled = Replicates(40, 6, seed=0)
    for i in np.random.default_rng(0).permutation(50):
        shuffled.add([names[i]], differences[i : i + 1])
    np.testing.assert_allclose(shuffled.bootstrap(), whole.bootstrap(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(shuffled.sign_flips(), whole.sign_flips(), rtol=1e-9, atol=1e-12)
    other = replicates_of(differences, 40, seed=1)
    assert not np.allclose(other.bootstrap(), whole.bootstrap())


def test_bootstrap_interval_covers_the_true_mean() -> None:
    # 400 independent simulated latents with true mean 0.3: the 95% percentile interval of 60 prompts covers it about
    # 94% of the time; the bounds are four binomial standard errors away.
    covered = 0
    for block in range(10):  # independent resamples, a seed a block
        means = replicates_of(normal(60, 40, seed=block, mean=0.3), 1000, seed=block).bootstrap()
        low, high = percentile_ends(means)
        covered += int(((low < 0.3) & (high > 0.3)).sum())
    assert 0.94 - 4 * 0.012 < covered / 400 < 0.94 + 4 * 0.012


def test_sign_flip_p_is_that_of_all_flips_of_few_prompts() -> None:
    """Breaks if the flips are not fair or p is not two-sided: with 6 prompts all 64 flips can be counted."""
    differences = normal(6, 5, seed=3, mean=0.7)
    made = Replicates(4000, 5, seed=0)
    made.add(ids(6), differences)
    observed = differences.sum(0).numpy()
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (np.abs(signs @ differences.numpy()) >= np.abs(observed) - 1e-12).mean(0)
    p = sign_flip_p(observed, made.sign_flips(), np.array([0, 2, 4]))
    assert np.isnan(p[[1, 3]]).all()
    # Four standard errors of 4,000 flips.
    for latent in (0, 2, 4):
        assert abs(p[latent] - exact[latent]) < 4 * np.sqrt(exact[latent] * (1 - exact[latent]) / 4000) + 1e-3


def test_sign_flip_p_agrees_with_t_on_normal_differences() -> None:
    differences = normal(80, 200, seed=5)
    moments = Moments(200)
    moments.add(differences)
    made = replicates_of(differences, 2000)
    p = sign_flip_p(differences.sum(0).numpy(), made.sign_flips(), np.arange(200))
    assert np.abs(p - moments.paired_t()[1]).max() < 0.06
