"""How predictors are fitted and compared."""

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """How predictors are fitted and compared; none of it is published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int = Field(default=20, ge=1, description="Latents that a rule may choose from, by mean shift.")
    random_latents: int = Field(default=100, ge=2, description="Latents drawn at random as the control.")
    replicates: int = Field(default=2000, ge=1, description="Replicates of every bootstrap.")
