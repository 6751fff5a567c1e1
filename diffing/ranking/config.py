"""How latents are ranked, and by what."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing.positions import POSITIONS_HELP, Positions

Method = Literal[
    "shift",
    "shift_prompt",
    "shift_last_prompt",
    "shift_answer",
    "shift_all",
    "frequency_shift",
    "max_shift",
    "cosine_mean_difference",
    "projection_encoder",
    "projection_decoder",
]
# What each column that can order the table holds, and its unit; `FeatureRanking.config["columns"]` repeats it.
METHODS: dict[Method, str] = {
    "shift": "mean activity over the config's positions, corrupted - base [activation]",
    "shift_prompt": "mean activity over prompt tokens, corrupted - base [activation]",
    "shift_last_prompt": "mean activity on the last prompt token, corrupted - base [activation]",
    "shift_answer": "mean activity over answer tokens, corrupted - base [activation]",
    "shift_all": "mean activity over all tokens, corrupted - base [activation]",
    "frequency_shift": "share of tokens on which the latent is active, corrupted - base [fraction]",
    "max_shift": "largest activation, corrupted - base [activation]",
    "cosine_mean_difference": "signed cosine of decoder row and mean difference (Arditi & Chen 2025) [cosine]",
    "projection_encoder": "mean difference times encoder column: shift of the pre-activation [activation]",
    "projection_decoder": "mean difference along the unit decoder row [residual norm]",
}


# Smallest change that counts as moved, as a share of the largest of any latent.
MOVED_FROM = 0.01


class RankingConfig(BaseModel):
    """How latents are ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field(default="shift", description="Column whose absolute value orders the table.")
    positions: Positions = Field(default="prompt", description=f"Token positions that are averaged: {POSITIONS_HELP}.")
    replicates: int = Field(
        default=1000, ge=1, description="Replicates of the bootstrap over prompts, and of the sign flips."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Coverage of the bootstrap intervals.")
    seed: int = Field(default=0, ge=0, description="Seed of the replicates.")
    min_prompts: int = Field(
        default=10, ge=1, description="Prompts on which a latent must be active, in either model, to get a p and a q."
    )
    permuted: int = Field(
        default=1000, ge=0, description="Latents, the first by |t|, that get a sign-flip p (post-selection)."
    )
    stable_top: int = Field(default=10, ge=1, description="Places that `stability` counts over the resamples.")


# Smallest change that counts as moved, as a share of the largest of any latent.
MOVED_FROM = 0.01


class InterferenceConfig(BaseModel):
    """Which latent is steered, how strongly, and what counts as moved by it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(description="Latent that is added.")
    strength: float = Field(description="In mean residual norms; negative to subtract.")
    positions: Positions = Field(
        default="prompt",
        description=f"Positions that are averaged within each prompt, and whose rows are counted: {POSITIONS_HELP}.",
    )
    moved_from: float = Field(
        default=MOVED_FROM,
        description="Smallest change that counts as moved, as a share (0-1) of the largest of any latent.",
    )
