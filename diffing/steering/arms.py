"""Arms of a steering experiment: what is steered with, by which operation, how strongly; and the controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffing.directions.random_directions import covariance_directions, isotropic_directions
from diffing.steering.config import ControlsConfig, Operation

Kind = Literal["untouched", "latent", "latent_set", "direction", "isotropic", "covariance", "decoder_row"]
CONTROL_KINDS: tuple[Kind, ...] = ("isotropic", "covariance", "decoder_row")


@dataclass(frozen=True)
class Arm:
    """A unit vector to steer with.

    Attributes:
        name: Name in tables and plots.
        kind: Treatment or kind of control.
        unit: Unit vector, pointing from the base's behaviour towards the corrupted model's.
        latent: The latent whose decoder row it is, if any.
        base_mean: Mean projection of the base's activations on `unit`, put back by `ABLATE_TO_MEAN`.
    """

    name: str
    kind: Kind
    unit: Float[Tensor, "d_model"]
    latent: int | None = None
    base_mean: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One arm, one operation, one strength (in mean residual norms; 0 where the operation has none)."""

    arm: Arm
    operation: Operation
    strength: float = 0.0


def untouched(d_model: int) -> Cell:
    """The cell that leaves the model as it is."""
    return Cell(Arm("untouched", "untouched", torch.zeros(d_model)), Operation.NONE)


def latent_arms(sae: SAE, ranking: pd.DataFrame, top: int) -> list[Arm]:
    """The first `top` latents by absolute shift; one that fell points along its negated decoder row."""
    return [
        Arm(f"latent {latent}", "latent", _unit(sae.W_dec[latent].detach() * np.sign(shift)), int(latent))
        for latent, shift in ranking.nsmallest(top, "rank")[["latent", "shift"]].itertuples(index=False)
    ]


def direction_arm(name: str, direction: Float[Tensor, "d_model"], base_mean: Float[Tensor, "d_model"]) -> Arm:
    """A dense direction as an arm; `base_mean` is the base's mean activation."""
    unit = _unit(direction)
    return Arm(name, "direction", unit, base_mean=float(einsum(unit, base_mean.float(), "d_model, d_model ->")))


def control_arms(
    sae: SAE,
    ranking: pd.DataFrame,
    activations: Float[Tensor, "rows d_model"],
    treated: int | None,
    config: ControlsConfig,
) -> list[Arm]:
    """Controls of every kind: isotropic, with the activations' covariance, decoder rows of similar activity.

    Args:
        sae: Where decoder rows come from.
        ranking: The table of the ranking.
        activations: The base's activations, for the covariance.
        treated: The latent whose mean activity the decoder rows should match (None: the first of the ranking).
        config: How many, with which seed, and which latents are treatments.
    """
    isotropic = isotropic_directions(activations.shape[1], config.each, config.seed).float()
    covariance = covariance_directions(activations, config.each, config.seed).float()
    similar = _similar_latents(ranking, treated, config.top, config.each)
    return [
        *(Arm(f"isotropic {i}", "isotropic", v) for i, v in enumerate(isotropic)),
        *(Arm(f"covariance {i}", "covariance", v) for i, v in enumerate(covariance)),
        *(Arm(f"decoder row {i}", "decoder_row", _unit(sae.W_dec[i].detach()), i) for i in similar),
    ]


def _similar_latents(ranking: pd.DataFrame, treated: int | None, top: int, count: int) -> Sequence[int]:
    """Latents below rank `top` whose mean activity (the larger of both models) is nearest to the treated one's."""
    table = ranking.sort_values("rank")
    latent = table["latent"].to_numpy()
    activity = np.log(table[["mean_base", "mean_corrupted"]].to_numpy().max(axis=1) + 1e-9)
    target = activity[0] if treated is None else activity[latent == treated][0]
    nearest = np.argsort(np.abs(activity - target)[top:], kind="stable")[:count]
    return latent[top:][nearest].astype(int).tolist()


def _unit(vector: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    return vector.float() / vector.float().norm()
