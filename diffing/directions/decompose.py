"""A dense direction as a sum of few latents: which ones, how much of each, and what they leave over.

Latents only add, as in the SAE's decoder, so coefficients are never negative, and each latent is chosen for what those
before it leave over.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import nnls
from torch import Tensor

from activations.errors import UserError
from diffing.directions.random_directions import covariance_directions, isotropic_directions
from diffing.geometry import unit_rows

# A smaller cosine with what is left is the rounding of a float32 direction or decoder; it would explain 1e-12 at most.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Decomposition:
    """Latents that add up to a direction.

    Attributes:
        latents: Their indices, in the order in which they were chosen.
        coefficients: How much of each latent's unit decoder row, all together, in the direction's own units; 0 for a
            latent that later ones made superfluous.
        unexplained: Share (0-1) of the direction's squared norm that is left after the first i + 1 latents.
    """

    latents: Int[np.ndarray, "chosen"]
    coefficients: Float64[np.ndarray, "chosen"]
    unexplained: Float64[np.ndarray, "chosen"]

    def curve(self, n: int) -> Float64[np.ndarray, "n"]:
        """Share left after 1, 2, ..., n latents; the last one stays where no latent was left that helps."""
        shares = np.append(1.0, self.unexplained)
        return shares[np.minimum(np.arange(1, n + 1), len(self.unexplained))]


def decompose(direction: Float[Tensor, "width"], decoder: Float[Tensor, "latent d_model"], n: int) -> Decomposition:
    """Non-negative orthogonal matching pursuit (Bruckstein, Elad & Zibulevsky 2008), in float64.

    Each step takes the decoder row with the largest positive cosine with what is left, then fits all chosen rows anew
    by non-negative least squares. It ends before `n` latents when no row points along what is left: then the fit is
    the best one that all latents together can give. A direction that no row points along has an empty decomposition.

    Args:
        direction: Of any norm.
        decoder: The SAE's decoder; rows may have any norm, and rows of zeros are never chosen.
        n: Most latents.

    Raises:
        UserError: if the direction is zero, its width is not the decoder's, a value is not finite, or n is below 1.
    """
    if len(direction) != decoder.shape[1]:
        raise UserError(
            f"The direction has {len(direction)} values and the decoder's rows {decoder.shape[1]}; "
            "take the direction at the hook that the SAE was trained on."
        )
    if not direction.any() or not direction.isfinite().all():
        raise UserError(
            "The direction is zero or holds values that are not finite, so it has no parts; extract it again."
        )
    _require_usable(decoder, n)
    return _pursue(direction[None], decoder, n)[0]


def null_unexplained(
    decoder: Float[Tensor, "latent d_model"],
    n: int,
    draws: int = 100,
    seed: int = 0,
    activations: Float[Tensor, "rows width"] | None = None,
) -> Float64[np.ndarray, "draw n"]:
    """What n latents leave of random directions: the curve to hold that of a real direction against.

    Shares do not depend on a direction's norm, so these hold for directions of every norm.

    Args:
        decoder: As in `decompose`.
        n: Most latents.
        draws: Number of random directions.
        seed: Of the draws.
        activations: Directions have their covariance; without them, directions are isotropic.

    Returns:
        `Decomposition.curve(n)` of each random direction.

    Raises:
        UserError: if the activations have another width, are all the same or not finite, a decoder value is not finite,
            or n or draws is below 1.
    """
    _require_usable(decoder, n)
    if draws < 1:
        raise UserError(f"A null needs at least 1 random direction, not {draws}; give a larger number of draws.")
    d_model = decoder.shape[1]
    if activations is None:
        directions = isotropic_directions(d_model, draws, seed)
    elif activations.shape[1] == d_model:
        directions = covariance_directions(activations, draws, seed)
    else:
        raise UserError(
            f"The activations have {activations.shape[1]} values and the decoder's rows {d_model}; "
            "take the activations at the hook that the SAE was trained on."
        )
    return np.stack([found.curve(n) for found in _pursue(directions, decoder, n)])


class _Fit:
    """A unit direction, the latents chosen for it so far, and what they leave over."""

    def __init__(self, target: Float64[np.ndarray, "d_model"]) -> None:
        self.target = self.residual = target
        self.coefficients = np.zeros(0)
        self.latents: list[int] = []
        self.rows: list[np.ndarray] = []
        self.unexplained: list[float] = []

    def add(self, latent: int, row: Float64[np.ndarray, "d_model"]) -> None:
        self.latents.append(latent)
        self.rows.append(row)
        rows = np.stack(self.rows)
        self.coefficients = nnls(rows.T, self.target)[0]
        self.residual = self.target - self.coefficients @ rows
        self.unexplained.append(float(self.residual @ self.residual))

    def scaled(self, norm: float) -> Decomposition:
        """The result for the direction of this norm."""
        return Decomposition(
            np.array(self.latents, dtype=np.int64), self.coefficients * norm, np.array(self.unexplained, dtype=float)
        )


def _pursue(
    directions: Float[Tensor, "direction d_model"], decoder: Float[Tensor, "latent d_model"], n: int
) -> list[Decomposition]:
    """All directions side by side, because one product with the decoder serves them all."""
    rows = unit_rows(decoder)
    fits = [_Fit(target) for target in unit_rows(directions).cpu().numpy()]
    for _ in range(n):
        residuals = torch.from_numpy(np.stack([fit.residual for fit in fits])).to(rows)
        best = (rows @ residuals.T).max(0)
        helpful = (best.values > _ROUNDING).nonzero()[:, 0].tolist()
        if not helpful:
            break
        latents = best.indices.tolist()
        for i in helpful:
            fits[i].add(latents[i], rows[latents[i]].cpu().numpy())
    norms = directions.detach().double().norm(dim=1).tolist()
    return [fit.scaled(norm) for fit, norm in zip(fits, norms, strict=True)]


def _require_usable(decoder: Float[Tensor, "latent d_model"], n: int) -> None:
    if n < 1:
        raise UserError(f"A direction is decomposed into at least 1 latent, not {n}; give a larger n.")
    if not decoder.isfinite().all():
        raise UserError("The SAE's decoder holds values that are not finite; load or train the SAE again.")
