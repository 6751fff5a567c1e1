"""What of the personality space is looked at, and with how many draws."""

from pydantic import BaseModel, ConfigDict, Field

from diffing.personality.config import BASE_ANSWER, TraitPositions


class GeometryConfig(BaseModel):
    """What is looked at, and with how many draws."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: TraitPositions = Field(default=BASE_ANSWER, description="Directions that the page is about.")
    hook: str | None = Field(default=None, description="None: where the base's traits separate best (see `extract`).")
    permutations: int = Field(default=2000, ge=1, description="Of the traits' names, for the p of every RSA.")
    replicates: int = Field(default=500, ge=1, description="Resamples, for every interval.")
    draws: int = Field(default=200, ge=1, description="Random sets of directions, for every null.")
    latents: int = Field(default=5, ge=1, description="Latents that a direction is decomposed into.")
