"""Which fine-tunes are compared, and how much of everything."""

from pydantic import Field

from experiments.frame.experiment import ExperimentConfig

# Kinds of directions beside random ones: of misaligned fine-tunes, and of negative controls.
FINE_TUNE, HARMLESS = "fine-tune", "harmless"


class ConvergenceConfig(ExperimentConfig):
    """Which fine-tunes are compared, and how much of everything."""

    samples: int = Field(default=5, ge=1, description="Answers to each question.")
    budget: float = Field(default=0.1, ge=0, le=1, description="Extra incoherent answers (share) allowed.")
    controls: int = Field(default=8, ge=1, description="Random directions of each kind.")
    fine_tunes: int = Field(default=6, ge=2, description="Misaligned fine-tunes that are compared, at most.")
    least_harmful: float = Field(
        default=0.1, gt=0, lt=1, description="Harmful answers (share) from which on a fine-tune is misaligned."
    )
    harmless: tuple[str, ...] = Field(
        default=("benign", "other persona"), description="Kinds of members; the first of each is a negative control."
    )
    answers: int = Field(default=100, ge=1, description="Answers of each kind that a direction is taken from, at most.")
    strengths: tuple[float, ...] = Field(
        default=(0.3, 0.6, 0.9), min_length=1, description="Strengths tried, in mean residual norms of the base."
    )
    draws: int = Field(default=1000, ge=20, description="Random directions that chance cosines are taken from.")
