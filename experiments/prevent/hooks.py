"""What acts on the base while it trains: steering along a direction, or a penalty on latents; and the controls.

A control of steering is a random direction with the activations' covariance; one of a penalty acts on other latents of
similar activity.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from activations.errors import UserError
from diffing.directions.random_directions import covariance_directions
from diffing.steering.config import PenaltyConfig
from diffing.steering.prevention import LatentPenalty, PreventativeSteering, TrainingHook
from experiments.frame.lab import Lab
from experiments.organism.training import PARTS
from experiments.prevent.config import NONE, Method, PreventionConfig

NEAREST = 4  # latents that a control is drawn from


def make_hook(lab: Lab[PreventionConfig], method: Method) -> TrainingHook | None:
    """What acts while the model trains; None for the plain fine-tune.

    Raises:
        UserError: if the SAE has too few latents for a control.
    """
    if method.family == NONE:
        return None
    if method.family == "steering":
        unit = _steered_unit(lab, method.control)
        return PreventativeSteering(lab.hook, unit, method.dose, lab.run.residual_norm)
    settings = PenaltyConfig(weight=method.dose, power=lab.config.power)
    latents = _penalised_latents(lab, method)
    return LatentPenalty(lab.hook, lab.sae, latents, lab.organism.copy_of_base(), settings, share=1 / PARTS)


def _steered_unit(lab: Lab[PreventionConfig], control: int | None) -> Float[Tensor, "d_model"]:
    """The direction that the run steers its base with, or one of the random ones."""
    if control is not None:
        return covariance_directions(lab.prompt_rows, lab.config.controls, lab.seed)[control].float()
    return lab.steered_direction.float()


def _penalised_latents(lab: Lab[PreventionConfig], method: Method) -> list[int]:
    """The run's most risen latents or its toxic one; for a control others in their place."""
    assert lab.toxic is not None  # the experiment needs one
    ranking = lab.ranking.table
    risen = _risen_latents(ranking, lab.config.top)
    treated = risen if method.family == "latents" else [lab.toxic]
    if method.control is None:
        return treated
    return similar_latents(ranking, treated, {*risen, lab.toxic}, lab.seed + method.control)


def _risen_latents(ranking: pd.DataFrame, top: int) -> list[int]:
    """The latents that rose most."""
    most = ranking.nlargest(top, "shift")
    return most.loc[most["shift"] > 0, "latent"].astype(int).tolist()


def similar_latents(ranking: pd.DataFrame, treated: Sequence[int], exclude: set[int], seed: int) -> list[int]:
    """For each treated latent another one of similar activity, none twice.

    Drawn from the nearest by log mean activity (the larger of both models) that are still free.

    Raises:
        UserError: if the SAE has too few other latents.
    """
    generator = np.random.default_rng(seed)
    largest = np.log(ranking[["mean_base", "mean_corrupted"]].to_numpy().max(axis=1) + 1e-9)
    activity = dict(zip(ranking["latent"].astype(int).tolist(), largest.tolist(), strict=True))
    free = [latent for latent in activity if latent not in exclude]
    if len(free) < len(treated):
        raise UserError(f"The SAE has {len(free)} other latents; {len(treated)} controls need a larger one.")
    drawn: list[int] = []
    for latent in treated:
        nearest = sorted(free, key=lambda other: abs(activity[other] - activity[latent]))[:NEAREST]
        drawn.append(int(generator.choice(nearest)))
        free.remove(drawn[-1])
    return drawn
