"""How many latents are steered, and how often each question is asked."""

from pydantic import Field

from experiments.frame.experiment import ExperimentConfig


class SteerConfig(ExperimentConfig):
    """Which latents are steered; everything else is as in the run."""

    top: int = Field(default=100, ge=1, description="Latents to steer, by rank.")
    samples: int = Field(default=10, ge=1, description="Answers to each question under each arm.")
