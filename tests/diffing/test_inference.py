"""Inference on paired differences: against scipy, against slow resampling, and calibrated under the null."""

import numpy as np
import pytest
import scipy.stats
import torch

from diffing.ranking import inference
from diffing.ranking.inference import Moments, Replicates, benjamini_hochberg, interval, sign_flip_p, stability


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


@pytest.mark.parametrize("tests", [1, 2, 50])
def test_benjamini_hochberg_equals_scipy(tests: int) -> None:
    p = np.random.default_rng(tests).uniform(size=tests) ** 3
    p[tests // 2 :] = p[tests // 2]  # ties
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p), rtol=1e-12)


def test_benjamini_hochberg_by_its_definition_and_without_the_untested() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan, 0.005])
    # m = 4: 0.005*4/1 = 0.02, 0.01*4/2 = 0.02, 0.03*4/3 = 0.04, 0.04*4/4 = 0.04
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.04, 0.04, np.nan, 0.02], rtol=1e-12)
    assert np.isnan(benjamini_hochberg(np.array([np.nan, np.nan]))).all()


def test_replicates_do_not_depend_on_order_or_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if weights belong to places in the stream instead of prompts."""
    differences, names = normal(50, 6, seed=1), ids(50)
    whole = replicates_of(differences, 40, part=50)
    monkeypatch.setattr(inference, "_GATHERED_VALUES", 6 * 9)
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
        low, high = interval(means, 0.95)
        covered += int(((low < 0.3) & (high > 0.3)).sum())
    assert 0.94 - 4 * 0.012 < covered / 400 < 0.94 + 4 * 0.012


def test_intervals_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    means = normal(100, 30, seed=2).numpy()
    expected = np.quantile(means, [0.05, 0.95], axis=0)
    monkeypatch.setattr(inference, "_BLOCK_VALUES", 700)
    np.testing.assert_allclose(interval(means, 0.9), expected, rtol=1e-14)


def test_stability_counts_places() -> None:
    means = np.array([[5.0, -6.0, 1.0, 0.0], [5.0, 0.5, -1.0, 0.0]])
    assert stability(means, 2).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert stability(means, 4).tolist() == [1.0] * 4


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
