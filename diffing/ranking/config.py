"""How latents are ranked, and by what."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from diffing.positions import POSITIONS_HELP, Positions
from diffing.ranking.methods import METHODS


class RankingConfig(BaseModel):
    """How latents are ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(
        default="shift", description=f"Column whose absolute value orders the table: {', '.join(METHODS)}."
    )
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

    @field_validator("method")
    @classmethod
    def _is_known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"there is no method '{method}'; choose one of {', '.join(METHODS)}")
        return method


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
