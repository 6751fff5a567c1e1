"""What of the personality space is looked at, and with how many draws."""

from pydantic import Field

from diffing.personality.config import BASE_ANSWER, TraitPositions
from experiments.frame.experiment import ExperimentConfig


class GeometryConfig(ExperimentConfig):
    """What is looked at, and with how many draws."""

    positions: TraitPositions = Field(
        default=BASE_ANSWER,
        description="Positions of the directions that figures, axes and latents are about: answer, base_answer, "
        "prompt, last_prompt, prompt_end.",
    )
    hook: str | None = Field(
        default=None,
        description="Hook that figures and axes are about (default: where the base's traits separate best).",
    )
    permutations: int = Field(
        default=2000, ge=1, description="Permutations of the traits' names, for the p of every RSA."
    )
    replicates: int = Field(default=500, ge=1, description="Bootstrap replicates, for every interval.")
    draws: int = Field(default=200, ge=1, description="Random sets of directions, for every null.")
    latents: int = Field(default=5, ge=1, description="Latents that a direction is decomposed into.")
