"""Random directions: what is expected of a direction that means nothing."""

import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from activations.errors import UserError
from diffing.geometry import cosines, unit_rows


def isotropic_directions(d_model: int, count: int, seed: int) -> Float64[Tensor, "direction d_model"]:
    """Unit vectors that point anywhere with the same probability."""
    generator = torch.Generator().manual_seed(seed)
    return unit_rows(torch.randn(count, d_model, generator=generator, dtype=torch.float64))


def covariance_directions(
    rows: Float[Tensor, "rows d_model"], count: int, seed: int
) -> Float64[Tensor, "direction d_model"]:
    """Unit vectors along Gaussian draws that have the covariance of `rows`: random sums of the centred rows.

    Raises:
        UserError: if the rows are all the same, so that they have none, or not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    centred = rows.double() - rows.double().mean(0)
    # What is not finite is not smaller than anything.
    if not 0 < centred.abs().max() < torch.inf:
        raise UserError("The activations are all the same or not finite, so they have no covariance; take others.")
    weights = torch.randn(count, len(rows), generator=generator, dtype=torch.float64)
    return unit_rows(einsum(weights, centred, "direction rows, rows d_model -> direction d_model"))


def chance_cosine(
    rows: Float[Tensor, "rows d_model"],
    targets: Float[Tensor, "target d_model"],
    count: int,
    seed: int,
    confidence: float = 0.95,
) -> float:
    """How large the largest absolute cosine with any of `targets` is by chance.

    Args:
        rows: Activations whose covariance the random directions have.
        targets: What they are compared with.
        count: Number of random directions.
        seed: Of the directions.
        confidence: Share of the random directions that stay below.
    """
    found = cosines(covariance_directions(rows, count, seed).to(targets.device), targets)
    return float(found.abs().amax(1).quantile(confidence))


def chance_cosine_of_two(rows: Float[Tensor, "rows d_model"], count: int, seed: int, confidence: float = 0.95) -> float:
    """How large the absolute cosine of two such random directions is by chance."""
    first, second = covariance_directions(rows, 2 * count, seed).chunk(2)
    return float((first * second).sum(1).abs().quantile(confidence))
