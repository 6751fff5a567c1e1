"""Ranking methods: what each column that can order a ranking holds. Another one is one more entry of `METHODS`.

A method is computed from what one pass over the activations accumulates (`Change`), so it costs no further pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64
    from torch import Tensor

    from diffing.positions import Positions


class Change(Protocol):
    """What is known of the change from the base to the corrupted model when a method is computed.

    Attributes:
        shift: Change of the mean activity over the config's positions.
        shift_at: The same over other positions; those that no prompt has are missing.
        frequency, maximum: By "base" and "corrupted": share of tokens on which a latent is active, largest activation.
        difference: Mean difference of the activations [d_model].
        encoder: Encoder weights [d_model latent].
        decoder: Unit decoder rows [latent d_model].
    """

    shift: "Float64[np.ndarray, 'latent']"
    shift_at: "Mapping[Positions, Float64[np.ndarray, 'latent']]"
    frequency: "Mapping[str, Float64[np.ndarray, 'latent']]"
    maximum: "Mapping[str, Float64[np.ndarray, 'latent']]"
    difference: "Float64[Tensor, 'd_model']"
    encoder: "Float64[Tensor, 'd_model latent']"
    decoder: "Float64[Tensor, 'latent d_model']"


@dataclass(frozen=True)
class Method:
    """A column by whose absolute value latents can be ranked.

    Attributes:
        meaning: What it holds, and its unit.
        compute: Its values; None where no prompt has the positions that it averages.
    """

    meaning: str
    compute: "Callable[[Change], Float64[np.ndarray, 'latent'] | None]"


METHODS: dict[str, Method] = {
    "shift": Method("mean activity over the config's positions, corrupted - base [activation]", lambda c: c.shift),
    "frequency_shift": Method(
        "share of tokens on which the latent is active, corrupted - base [fraction]",
        lambda c: c.frequency["corrupted"] - c.frequency["base"],
    ),
    "max_shift": Method(
        "largest activation, corrupted - base [activation]", lambda c: c.maximum["corrupted"] - c.maximum["base"]
    ),
    "shift_prompt": Method(
        "mean activity over prompt tokens, corrupted - base [activation]", lambda c: c.shift_at.get("prompt")
    ),
    "shift_last_prompt": Method(
        "mean activity on the last prompt token, corrupted - base [activation]",
        lambda c: c.shift_at.get("last_prompt"),
    ),
    "shift_answer": Method(
        "mean activity over answer tokens, corrupted - base [activation]", lambda c: c.shift_at.get("answer")
    ),
    "shift_all": Method(
        "mean activity over all tokens, corrupted - base [activation]", lambda c: c.shift_at.get("all")
    ),
    "cosine_mean_difference": Method(
        "signed cosine of decoder row and mean difference (Arditi & Chen 2025) [cosine]",
        lambda c: (c.decoder @ c.difference / c.difference.norm().clamp_min(1e-300)).cpu().numpy(),
    ),
    "projection_encoder": Method(
        "mean difference times encoder column: shift of the pre-activation [activation]",
        lambda c: (c.difference @ c.encoder).cpu().numpy(),
    ),
    "projection_decoder": Method(
        "mean difference along the unit decoder row [residual norm]", lambda c: (c.decoder @ c.difference).cpu().numpy()
    ),
}
