"""What steering does with a vector, how a causal proof searches, and the form of the latent penalty."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Operation(StrEnum):
    """What is done with an arm's unit vector."""

    NONE = "none"
    ADD = "add"
    SUBTRACT = "subtract"
    ABLATE = "ablate"
    ABLATE_TO_MEAN = "ablate_to_mean"
    CAP = "cap"


@dataclass(frozen=True)
class ControlsConfig:
    """Which controls a treatment is compared with.

    Attributes:
        top: Latents up to this rank are treatments and never controls.
        each: Controls of each kind.
        seed: Seed of the random ones.
    """

    top: int
    each: int
    seed: int


@dataclass(frozen=True)
class ProofConfig:
    """How strengths are found, and budgets.

    Attributes:
        strongest: Upper end of the strengths (mean residual norms of the base).
        halvings: Steps of the bisection: the largest coherent strength is known to `strongest / 2**halvings`.
        induce_budget: Extra incoherent answers allowed when inducing (0-1).
        repair_budget: Extra incoherent answers allowed when repairing (0-1).
        claims: Causal latents that get controls at their own strengths, those that repair best; others stay unproven.
    """

    strongest: float
    halvings: int
    induce_budget: float
    repair_budget: float
    claims: int = 3


class PenaltyConfig(BaseModel):
    """The form of the latent penalty. Weight and power are our choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, ge=0, description="Weight of the penalty beside the training loss.")
    power: Literal[1, 2] = Field(default=2, description="Power of the rise of a latent above the base.")
