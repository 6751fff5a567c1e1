"""Which sets of latents are built, and how they are measured."""

from pydantic import Field

from experiments.frame.experiment import ExperimentConfig


class LatentSetsConfig(ExperimentConfig):
    """Which sets are built, and how they are measured."""

    candidates: int = Field(default=20, ge=1, description="Latents that sets are made of, by absolute shift.")
    greedy: int = Field(default=5, ge=1, description="Latents in the largest greedy set.")
    joint: tuple[int, ...] = Field(default=(2, 5, 10, 20), description="Sizes of the joint sets.")
    rebuilt: int = Field(default=5, ge=1, description="Latents that rebuild the dense direction.")
    controls: int = Field(default=8, ge=1, description="Random sets, as large as the largest greedy set.")
    samples: int = Field(default=10, ge=1, description="Answers to each question.")
    search_strength: float = Field(
        default=0.6, gt=0, description="Strength at which greedy sets are compared (mean residual norms of the base)."
    )
    strengths: tuple[float, ...] = Field(
        default=(0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05), description="Doses, in mean residual norms of the base."
    )
