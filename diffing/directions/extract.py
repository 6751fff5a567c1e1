"""Dense persona directions from contrastive prompts (Chen et al. 2025, arXiv 2507.21509, and the like)."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.directions.persona_directions import PersonaDirections
from diffing.positions import Positions
from diffing.ranking.activation_means import activation_means


def extract_directions(
    stores: Mapping[str, ActivationSource], hook: str, reference: str, positions: Positions
) -> PersonaDirections:
    """Two directions for each persona: against `reference` and against the mean of all others.

    They are called "persona - reference" and, where there are more than two personas, "persona - others". The first
    turns one persona into the other; the second sets the persona apart from all.

    Args:
        stores: Persona -> activations of one model on that persona's prompts; the i-th prompts of all personas belong
            together (same question, another persona).
        hook: Hook point of the activations.
        reference: The persona that all others are compared with.
        positions: Those that enter each prompt's mean.

    Raises:
        UserError: if `reference` has no store, or a persona has another number of prompts.
    """
    if reference not in stores:
        raise UserError(f"No activations of the reference '{reference}'; there are: {', '.join(sorted(stores))}.")
    means = {persona: activation_means(store, hook, positions) for persona, store in stores.items()}
    vectors = {
        f"{persona} - {reference}": _paired_difference(means[persona], means[reference], persona)
        for persona in stores
        if persona != reference
    }
    if len(stores) > 2:
        for persona in stores:
            others = np.mean([means[other] for other in stores if other != persona], axis=0)
            vectors[f"{persona} - others"] = _paired_difference(means[persona], others, persona)
    return PersonaDirections(vectors, hook, {"reference": reference, "positions": positions})


def mean_direction(
    positive: ActivationSource, negative: ActivationSource, hook: str, positions: Positions
) -> Float[Tensor, "d_model"]:
    """Mean over prompts of (mean residual on the positive prompt - same on the negative prompt with the same index).

    Every prompt counts alike whatever its length. A pair in which either prompt has none of these positions is left
    out. Summed in float64, returned in float32, the type of the activations that it will be added to.

    Raises:
        UserError: if the stores do not hold the same number of prompts, or no pair is left.
    """
    means = [activation_means(store, hook, positions) for store in (positive, negative)]
    return _paired_difference(*means, name="positive")


def _paired_difference(
    positive: Float64[np.ndarray, "positive d_model"], negative: Float64[np.ndarray, "negative d_model"], name: str
) -> Float[Tensor, "d_model"]:
    if len(positive) != len(negative):
        raise UserError(
            f"The {name} prompts are {len(positive)} and those they are compared with {len(negative)}; "
            "they are compared pair by pair, so give both sides the same number of prompts in the same order."
        )
    difference = positive - negative
    paired = difference[~np.isnan(difference).any(1)]
    if not len(paired):
        raise UserError(f"No pair of {name} prompts has tokens at the chosen positions; choose other positions.")
    return torch.from_numpy(paired.mean(0)).float()
