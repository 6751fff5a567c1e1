"""Geometry between latents and dense directions; everything is computed in float64."""

from collections.abc import Mapping

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from activations.errors import UserError


def unit_rows(vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Every row scaled to length 1, in float64; rows of zeros stay zeros."""
    return torch.nn.functional.normalize(vectors.detach().double(), dim=-1)


def cosines(
    decoder: Float[Tensor, "latent d_model"], directions: Float[Tensor, "trait d_model"]
) -> Float[Tensor, "latent trait"]:
    """Signed cosine of every decoder row with every direction; 0 where either is the zero vector."""
    return einsum(unit_rows(decoder), unit_rows(directions), "latent d_model, trait d_model -> latent trait")


def cosine_matrix(directions: Float[Tensor, "trait d_model"]) -> Float[Tensor, "trait other_trait"]:
    """Signed cosines of directions with one another."""
    unit = unit_rows(directions)
    return einsum(unit, unit, "trait d_model, other_trait d_model -> trait other_trait")


def cosine_table(directions: Mapping[str, Float[Tensor, "d_model"]]) -> pd.DataFrame:
    """`cosine_matrix` of named directions; rows and columns are called as they are.

    Raises:
        UserError: if there are none, or they differ in width.
    """
    widths = {name: len(vector) for name, vector in directions.items()}
    if len(set(widths.values())) != 1:
        raise UserError(
            f"Only directions of one width can be compared, here are {widths}; take all of them at the same hook."
        )
    names = pd.Index(list(directions))
    vectors = torch.stack([vector.cpu().double() for vector in directions.values()])
    return pd.DataFrame(cosine_matrix(vectors).numpy(), index=names, columns=names)
