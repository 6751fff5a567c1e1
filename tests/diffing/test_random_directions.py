"""Random directions: which way they point, and how far chance goes."""

import pytest
import torch

from activations.errors import UserError
from diffing.directions.random_directions import (
    chance_cosine,
    chance_cosine_of_two,
    covariance_directions,
    isotropic_directions,
)


def test_they_have_the_covariance_of_the_rows() -> None:
    """Breaks if rows are not centred, or directions are drawn evenly whatever the rows."""
    draw = torch.randn(400, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    rows = 100 + draw * torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    found = covariance_directions(rows, 5000, seed=1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5000, dtype=torch.float64))
    assert found[:, 2].abs().max() < 1e-6
    # The angle of a Gaussian with deviations 3 and 1: the first coordinate's mean square is 3 / (3 + 1).
    assert found[:, 0].square().mean() == pytest.approx(0.75, abs=0.03)
    assert found.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.full((4, 3), torch.nan), torch.eye(3) / 0])
def test_rows_without_a_covariance(rows: torch.Tensor) -> None:
    """Breaks if directions of zeros, or of NaN, are given."""
    with pytest.raises(UserError, match="all the same or not finite"):
        covariance_directions(rows, 3, seed=0)


def test_isotropic_ones_point_anywhere() -> None:
    """Breaks if they are not unit vectors, lean to one side, or a seed does not fix them."""
    found = isotropic_directions(4, 5000, seed=0)
    torch.testing.assert_close(found.square().mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5000, dtype=torch.float64))
    assert torch.equal(found[:8], isotropic_directions(4, 5000, seed=0)[:8])


def test_chance_of_two_is_that_of_the_sphere() -> None:
    """In d even dimensions 95% of cosines lie below 1.96 / sqrt(d); breaks if pairs share draws, or signs count."""
    rows = torch.randn(2000, 100, generator=torch.manual_seed(0))
    assert chance_cosine_of_two(rows, 4000, seed=0) == pytest.approx(0.196, abs=0.015)
    line = torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0]))
    assert chance_cosine_of_two(line, 50, seed=0) == pytest.approx(1)


def test_chance_of_the_nearest_target_grows_with_their_number() -> None:
    """Breaks if the mean over targets is taken in place of the nearest."""
    rows = torch.randn(500, 30, generator=torch.manual_seed(0))
    targets = torch.eye(30)
    one, all_of_them = (chance_cosine(rows, chosen, 1000, seed=0) for chosen in (targets[:1], targets))
    assert one == pytest.approx(1.96 / 30**0.5, abs=0.05)
    assert 0.4 < all_of_them < 0.75
    assert chance_cosine(rows, targets, 1000, seed=0, confidence=0.5) < all_of_them
