"""Directions as sums of few latents: planted sums, a search written out, and random directions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from activations.errors import UserError
from diffing.directions.decompose import decompose, null_unexplained


def random_rows(rows: int, d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(rows: torch.Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=1, keepdim=True)).numpy()


def best_non_negative_fit(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What the best non-negative combination of rows leaves: of all their subsets fitted without a constraint."""
    best = target
    for size in range(1, len(rows) + 1):
        for subset in combinations(range(len(rows)), size):
            weights = np.linalg.lstsq(rows[list(subset)].T, target)[0]
            left = target - weights @ rows[list(subset)]
            if (weights >= 0).all() and left @ left < best @ best:
                best = left
    return best


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_search_written_out(seed: int) -> None:
    """Breaks if a step is not greedy, takes a negative cosine, keeps old coefficients, or shares are not of squares."""
    decoder, direction = random_rows(9, 5, seed), random_rows(1, 5, seed + 100)[0]
    rows, target = unit(decoder), direction.numpy()
    found = decompose(direction, decoder, 4)
    left, chosen = target, []
    for latent, share in zip(found.latents, found.unexplained, strict=True):
        assert latent == np.argmax(rows @ left)
        chosen.append(latent)
        left = best_non_negative_fit(rows[chosen], target)
        assert share == pytest.approx(left @ left / (target @ target), abs=1e-12)
    assert len(chosen) == 4 or (rows @ left).max() < 1e-6
    np.testing.assert_allclose(target - found.coefficients @ rows[found.latents], left, atol=1e-12)


def test_a_planted_sum_of_three_rows_is_found_and_no_more() -> None:
    """Breaks if rounding is taken for structure, coefficients follow the rows' lengths, or lose the direction's."""
    decoder = random_rows(200, 64) * torch.linspace(0.1, 10, 200, dtype=torch.float64)[:, None]
    rows = torch.from_numpy(unit(decoder))
    planted = {17: 3.0, 101: 2.0, 150: 1.0}
    direction = sum(amount * rows[latent] for latent, amount in planted.items())
    assert isinstance(direction, torch.Tensor)
    found = decompose(direction.float(), decoder.float(), 10)
    assert dict(zip(found.latents.tolist(), found.coefficients, strict=True)) == pytest.approx(planted, rel=1e-6)
    assert found.latents[0] == 17
    assert found.unexplained[-1] < 1e-12 < found.unexplained[1]
    ten_times = decompose(10 * direction, decoder, 3)
    np.testing.assert_allclose(ten_times.coefficients, 10 * found.coefficients, rtol=1e-6)
    np.testing.assert_allclose(ten_times.unexplained, found.unexplained, atol=1e-12)


def test_negative_parts_are_left_over() -> None:
    """Breaks if a row may be subtracted, or a row of zeros (a dead latent) is ever chosen."""
    decoder = torch.cat([torch.zeros(1, 6), torch.eye(6)[:4]])
    found = decompose(torch.tensor([3.0, -2.0, 1.0, 0.0, 0.0, 1.0]), decoder, 5)
    assert found.latents.tolist() == [1, 3]
    assert found.coefficients == pytest.approx([3.0, 1.0])
    assert found.unexplained == pytest.approx([6 / 15, 5 / 15])
    assert found.curve(4) == pytest.approx([6 / 15, 5 / 15, 5 / 15, 5 / 15])


@pytest.mark.parametrize("direction", [[0.0, 0.0, 2.0], [-1.0, -1.0, 0.0]])
def test_a_direction_that_no_row_points_along_has_no_parts(direction: list[float]) -> None:
    """Breaks if a latent without a positive cosine is chosen, or an empty result has no curve."""
    found = decompose(torch.tensor(direction), torch.eye(3)[:2], 2)
    assert len(found.latents) == len(found.coefficients) == len(found.unexplained) == 0
    assert found.curve(3).tolist() == [1.0, 1.0, 1.0]


def test_a_latent_that_later_ones_replace_ends_at_zero() -> None:
    """Breaks if the coefficients of earlier latents are not fitted anew, or are let below zero."""
    decoder = torch.tensor([[1.0, 1.0, 0.3], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = decompose(torch.tensor([1.0, 1.0, -0.2]), decoder, 3)
    assert found.latents[0] == 0
    assert found.coefficients[np.argsort(found.latents)] == pytest.approx([0.0, 1.0, 1.0], abs=1e-12)
    assert found.unexplained[-1] == pytest.approx(0.04 / 2.04)


def test_random_directions_fall_where_their_null_says() -> None:
    """Breaks if the null is drawn from other directions, or decomposed in another way, than a real one."""
    decoder, directions = random_rows(40, 12), random_rows(300, 12, seed=5)
    alone = [decompose(direction, decoder, 3).curve(3)[-1] for direction in directions]
    null = null_unexplained(decoder, 3, draws=300, seed=1)
    assert null.shape == (300, 3)
    assert (np.diff(null, axis=1) <= 1e-12).all()
    ranks = [(null[:, -1] <= share).mean() for share in alone]
    assert kstest(ranks, "uniform").pvalue > 0.01
    np.testing.assert_array_equal(null, null_unexplained(decoder, 3, draws=300, seed=1))
    assert (null != null_unexplained(decoder, 3, draws=300, seed=2)).all()


def test_the_null_with_activations_has_their_covariance() -> None:
    """Breaks if axes and variances are mixed up, or rows are not centred.

    With the axes and their opposites as decoder, one latent leaves 1 - max(x^2) / |x|^2 of a direction x.
    """
    mix = random_rows(3, 3, seed=3) * torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64)
    activations = 100 + random_rows(2000, 3, seed=4) @ mix
    covariance = np.cov(activations.numpy().T)
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(3), covariance, 4000)
    expected = 1 - (draws**2).max(1) / (draws**2).sum(1)
    found = null_unexplained(torch.cat([torch.eye(3), -torch.eye(3)]), 1, 4000, activations=activations.float())[:, 0]
    error = np.hypot(expected.std(), found.std()) / np.sqrt(4000)
    assert abs(found.mean() - expected.mean()) < 4 * error
    isotropic = null_unexplained(torch.cat([torch.eye(3), -torch.eye(3)]), 1, 4000)[:, 0]
    assert abs(isotropic.mean() - expected.mean()) > 8 * error
    axis = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    along = null_unexplained(torch.stack([axis, -axis]), 2, activations=torch.outer(torch.arange(9).double(), axis))
    assert along == pytest.approx(np.zeros((100, 2)), abs=1e-12)


@pytest.mark.parametrize(
    ("direction", "decoder", "n", "message"),
    [
        (torch.zeros(3), torch.eye(3), 1, "zero or holds values that are not finite"),
        (torch.tensor([1.0, torch.nan, 0.0]), torch.eye(3), 1, "zero or holds values that are not finite"),
        (torch.ones(4), torch.eye(3), 1, "has 4 values and the decoder's rows 3"),
        (torch.ones(3), torch.eye(3), 0, "at least 1 latent, not 0"),
        (torch.ones(3), torch.eye(3) / 0, 1, "decoder holds values that are not finite"),
    ],
)
def test_bad_input(direction: torch.Tensor, decoder: torch.Tensor, n: int, message: str) -> None:
    """Breaks if bad input ends in an empty result or in an error of numpy or torch."""
    with pytest.raises(UserError, match=message):
        decompose(direction, decoder, n)


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.eye(2), "activations have 2 values and the decoder's rows 3"),
        (torch.ones(5, 3), "all the same or not finite"),
        (torch.full((4, 3), torch.nan), "all the same or not finite"),
        (torch.tensor([[torch.inf, 0.0, 0.0], [1.0, 0.0, 0.0]]), "all the same or not finite"),
    ],
)
def test_activations_without_a_covariance(activations: torch.Tensor, message: str) -> None:
    """Breaks if the null is drawn from something that no activations have."""
    with pytest.raises(UserError, match=message):
        null_unexplained(torch.eye(3), 1, activations=activations)
    with pytest.raises(UserError, match="at least 1 random direction, not 0"):
        null_unexplained(torch.eye(3), 1, draws=0)
