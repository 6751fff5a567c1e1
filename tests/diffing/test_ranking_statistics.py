"""Latent statistics against one-shot formulas, and inference against scipy."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from small_stores import D_MODEL, HOOK, LATENTS, ragged_batch, random_activations, tiny_sae, write_store

from activations.errors import UserError
from activations.prompts import Role
from diffing.positions import POSITION_ROLES, PROMPT_END, Positions
from diffing.ranking import statistics
from diffing.ranking.statistics import (
    activation_means,
    benjamini_hochberg,
    bootstrap_interval,
    paired_t,
    prompt_means,
)


def positions_of(roles: np.ndarray, positions: Positions) -> np.ndarray:
    chosen = np.flatnonzero(np.isin(roles, POSITION_ROLES[positions]))
    if positions == "prompt_end":
        chosen = chosen[chosen > np.flatnonzero(roles == Role.LAST_PROMPT) - PROMPT_END]
    return chosen


@pytest.mark.parametrize("positions", ["prompt", "prompt_end", "last_prompt", "answer", "all"])
def test_streamed_statistics_equal_the_one_shot_formula(tmp_path: Path, positions: Positions) -> None:
    batch, sae = ragged_batch(10), tiny_sae()
    activations = random_activations(batch, seed=1)
    means = prompt_means(sae, write_store(tmp_path / "s", batch, activations), HOOK, positions)
    chosen = [
        rows[torch.from_numpy(positions_of(roles, positions))].double()
        for rows, roles in zip(activations, batch.roles, strict=True)
    ]
    with torch.no_grad():
        encoded = [sae.encode(rows) for rows in chosen]
    together = torch.cat(encoded)
    np.testing.assert_allclose(means.activity, torch.stack([a.mean(0) for a in encoded]).numpy(), rtol=1e-12)
    np.testing.assert_allclose(means.activation, torch.stack([a.mean(0) for a in chosen]).numpy(), rtol=1e-12)
    np.testing.assert_allclose(means.frequency, (together > 0).double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(means.maximum, together.amax(0).numpy(), rtol=1e-12)
    assert means.rows.tolist() == [len(rows) for rows in chosen]


def test_small_blocks_give_the_same_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, sae = ragged_batch(8), tiny_sae()
    store = write_store(tmp_path / "s", batch, random_activations(batch, seed=1))
    whole = prompt_means(sae, store, HOOK, "all")
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 2 * LATENTS)
    split = prompt_means(sae, store, HOOK, "all")
    np.testing.assert_allclose(split.activity, whole.activity, rtol=1e-12)
    np.testing.assert_allclose(split.frequency, whole.frequency, rtol=1e-12)


def test_sums_do_not_lose_small_values_as_float32_sums_do(tmp_path: Path) -> None:
    batch = ragged_batch(1)
    rows = [torch.full((len(batch.tokens[0]), D_MODEL), 0.1)]
    rows[0][1] = 2.0**24
    mean = activation_means(write_store(tmp_path / "s", batch, rows), HOOK, "all")[0, 0]
    used = int((batch.roles[0] != Role.SPECIAL).sum())
    assert mean == pytest.approx((2.0**24 + (used - 1) * float(np.float32(0.1))) / used, rel=1e-15)


def test_special_positions_never_enter(tmp_path: Path) -> None:
    batch, sae = ragged_batch(6), tiny_sae()
    clean = random_activations(batch, seed=2)
    spoilt = [rows.clone() for rows in clean]
    for rows, roles in zip(spoilt, batch.roles, strict=True):
        rows[torch.from_numpy(roles == Role.SPECIAL)] = 1e6
    first = prompt_means(sae, write_store(tmp_path / "a", batch, clean), HOOK, "all")
    second = prompt_means(sae, write_store(tmp_path / "b", batch, spoilt), HOOK, "all")
    for name in ("activity", "frequency", "maximum", "activation"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_sae_of_another_width_is_refused(tmp_path: Path) -> None:
    from sae_lens import TopKSAE, TopKSAEConfig

    batch = ragged_batch(2)
    store = write_store(tmp_path / "s", batch, random_activations(batch, seed=0))
    sae = TopKSAE(TopKSAEConfig(d_in=12, d_sae=16, k=2, dtype="float32", device="cpu"))
    with pytest.raises(UserError, match=r"SAE expects d_model=12, activations of .* have 8"):
        prompt_means(sae, store, HOOK, "all")


def test_paired_t_equals_scipy() -> None:
    generator = np.random.default_rng(0)
    base, other = generator.normal(size=(2, 17, 40))
    t, p = paired_t(other - base)
    expected = scipy.stats.ttest_rel(other, base)
    np.testing.assert_allclose(t, expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-10)


def test_paired_t_without_spread() -> None:
    t, p = paired_t(np.array([[0.0, 0.5, -0.5]] * 4))
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


def test_bootstrap_interval_covers_the_true_mean() -> None:
    # 400 independent simulated latents with true mean 0.3: the 95% percentile interval of 60 prompts covers it about
    # 94% of the time; the bounds are four binomial standard errors away.
    differences = np.random.default_rng(3).normal(0.3, 1.0, size=(60, 400))
    covered = 0
    for start in range(0, 400, 40):  # independent resamples, a seed a block
        low, high = bootstrap_interval(differences[:, start : start + 40], 1000, 0.95, seed=start)
        covered += int(((low < 0.3) & (high > 0.3)).sum())
    assert 0.94 - 4 * 0.012 < covered / 400 < 0.94 + 4 * 0.012


def test_bootstrap_resamples_whole_prompts() -> None:
    differences = np.random.default_rng(4).normal(size=(12, 5))
    low, high = bootstrap_interval(differences, 500, 0.9, seed=7)
    draws = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=500)
    slow = np.array([np.repeat(differences, draw, axis=0).mean(0) for draw in draws])
    np.testing.assert_allclose(low, np.quantile(slow, 0.05, axis=0), rtol=1e-10)
    np.testing.assert_allclose(high, np.quantile(slow, 0.95, axis=0), rtol=1e-10)


def test_bootstrap_is_the_same_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(5).normal(size=(12, 7))
    whole = bootstrap_interval(differences, 100, 0.95, seed=1)
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 300)
    np.testing.assert_allclose(bootstrap_interval(differences, 100, 0.95, seed=1), whole, rtol=1e-12)
