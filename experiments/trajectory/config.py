"""How often a model is measured while it is corrupted and re-aligned, and how."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from experiments.frame.experiment import ExperimentConfig
from experiments.organism.config import REALIGN, REALIGN_SAMPLES, StageConfig

CORRUPTION, REALIGNMENT = "corruption", "re-alignment"


class TrajectoryConfig(ExperimentConfig):
    """What is saved and measured on the way (our own choices)."""

    every: int = Field(default=4, ge=1, description="Steps between two measurements.")
    samples: int = Field(default=10, ge=1, description="Answers to each reporting question.")
    realign_samples: int = Field(
        default=REALIGN_SAMPLES, ge=1, description="Helpful answers that re-alignment repeats."
    )
    realign: StageConfig = Field(default=REALIGN, description="How re-alignment trains.")
    controls: int = Field(
        default=4, ge=1, description="Random directions that are added at the end, as controls of the latent."
    )

    @model_validator(mode="after")
    def _realigns(self) -> Self:
        if self.realign.steps < 1:
            raise ValueError("realign takes no steps; give it at least one")
        return self


@dataclass(frozen=True)
class Moment:
    """A place on the way where the model is saved and measured.

    Attributes:
        phase: `CORRUPTION` or `REALIGNMENT`.
        step: Optimiser steps taken in this phase.
    """

    phase: str
    step: int

    @property
    def name(self) -> str:
        """Name of folders."""
        return f"{self.phase}-{self.step:04d}"


def moments(corrupting: int, config: TrajectoryConfig) -> list[Moment]:
    """Every few steps and the last one of both phases, in order; the first is the untrained base.

    Args:
        corrupting: Steps of the corruption.
        config: Steps between two, and those of the re-alignment.
    """
    ends = {CORRUPTION: corrupting, REALIGNMENT: config.realign.steps}
    found = [Moment(phase, step) for phase, end in ends.items() for step in sorted({*range(0, end, config.every), end})]
    return [moment for moment in found if moment != Moment(REALIGNMENT, 0)]
