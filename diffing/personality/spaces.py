"""Directions of several traits at one hook: as a matrix, and the space that they span."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from activations.errors import UserError
from diffing.geometry import unit_rows

# Directions are kept in float32, so what is dependent by construction (contrasts with the mean of all others add up to
# zero) is so only to this share.
_ROUNDING = 1e-6


def trait_matrix(
    directions: Mapping[str, Float[Tensor, "d_model"]], traits: Sequence[str]
) -> Float64[Tensor, "trait d_model"]:
    """The directions of these traits in this order, so that the rows of several models' matrices belong together.

    Raises:
        UserError: if a trait has no direction, no trait is asked for, or the directions differ in width.
    """
    missing = [trait for trait in traits if trait not in directions]
    if missing or not traits:
        raise UserError(
            f"No direction for {', '.join(missing) or 'an empty list of traits'}; there are: {', '.join(directions)}."
        )
    vectors = [directions[trait].detach().cpu().double() for trait in traits]
    if len({len(vector) for vector in vectors}) > 1:
        raise UserError("The traits' directions differ in width; take all of them at the same hook.")
    return torch.stack(vectors)


def unit_directions(
    directions: Float[Tensor, "trait d_model"], fewest: int = 1
) -> Float64[np.ndarray, "trait d_model"]:
    """Every direction scaled to length 1.

    Args:
        directions: Of any norm.
        fewest: Directions that the method needs.

    Raises:
        UserError: if there are fewer, or one is zero or not finite.
    """
    if len(directions) < fewest:
        raise UserError(f"This comparison needs at least {fewest} traits, here are {len(directions)}; add directions.")
    rows = unit_rows(directions).cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(1) | ~rows.any(1))
    if len(bad):
        raise UserError(
            f"Direction number {bad[0]} of {len(rows)} (counted from 0) is zero or holds values that are not finite; "
            "extract it again or leave its trait out."
        )
    return rows


def orthonormal_basis(directions: Float[Tensor, "trait d_model"]) -> Float64[np.ndarray, "d_model axis"]:
    """Orthonormal axes of the span, as many as there are independent directions among the unit vectors.

    Raises:
        UserError: as `unit_directions`.
    """
    return scipy.linalg.orth(unit_directions(directions).T, rcond=_ROUNDING)
