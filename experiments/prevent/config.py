"""Ways to fine-tune, their doses, and where each fine-tune is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from experiments.frame.experiment import ExperimentConfig

Family = Literal["none", "steering", "latents", "toxic latent"]
NONE: Family = "none"
FAMILIES: tuple[Family, ...] = ("steering", "latents", "toxic latent")
STEPS, LOSS = "steps", "loss"  # where a fine-tune is measured
ANSWER_LOSS, TRAINING_LOSS = LOSSES = ("answer_loss", "training_loss")
# Columns that mark the doses chosen at equal loss of each sort.
MARKS = {ANSWER_LOSS: "chosen", TRAINING_LOSS: "chosen_in_training"}
Chosen = Mapping[str, Mapping[Family, float]]  # for each of `LOSSES`, the dose of each family


class PreventionConfig(ExperimentConfig):
    """Doses and controls (our own choices)."""

    strengths: tuple[float, ...] = Field(
        default=(0.1, 0.2, 0.4, 0.8), min_length=1, description="Doses of steering, in mean residual norms of the base."
    )
    weights: tuple[float, ...] = Field(
        default=(0.01, 0.1, 1.0), min_length=1, description="Doses of the penalties: their weight relative to the loss."
    )
    power: Literal[1, 2] = Field(default=2, description="Power of a latent's rise in the penalty.")
    top: int = Field(default=20, ge=1, description="Latents that the first penalty acts on: the most risen of the run.")
    controls: int = Field(default=2, ge=1, description="Controls of each method, at its chosen dose.")
    patience: float = Field(
        default=4.0, ge=1, description="When a fine-tune ends at the latest, in steps of the run's corrupted model."
    )
    budget: float = Field(
        default=0.1, ge=0, description="Incoherent answers that a chosen dose may have above the plain fine-tune."
    )
    target: float = Field(default=0.9, gt=0, le=1, description="Share of harmful answers that is to be prevented.")
    samples: int = Field(default=10, ge=1, description="Answers to each question.")

    def doses(self, family: Family) -> tuple[float, ...]:
        """The doses of a family's treatment."""
        return self.strengths if family == "steering" else self.weights


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        family: What is done.
        dose: Strength of steering, or weight of the penalty.
        control: Number of the control; None for the treatment itself.
    """

    family: Family
    dose: float = 0.0
    control: int | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.family == NONE:
            return self.family
        return f"{self.family}{'' if self.control is None else f' control {self.control}'} {self.dose:g}"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return self.name.replace(" ", "-")


PLAIN = Method(NONE)


def treatments(config: PreventionConfig) -> list[Method]:
    """The plain fine-tune, and every family at its doses."""
    return [PLAIN, *(Method(family, dose) for family in FAMILIES for dose in config.doses(family))]


def controls(chosen: Chosen, count: int) -> list[Method]:
    """Controls of every dose that was chosen."""
    pairs = sorted({pair for doses in chosen.values() for pair in doses.items()})
    return [Method(family, dose, control) for family, dose in pairs for control in range(count)]
