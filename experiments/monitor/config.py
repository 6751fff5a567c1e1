"""What a monitor is asked about, what it samples, and how that is tested."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.trait_judge import TraitJudge
from experiments.monitor.training_data import GOOD, Good


class MonitorConfig(BaseModel):
    """What is sampled and how it is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    positions: tuple[Literal["last_prompt", "prompt"], ...] = Field(
        default=("last_prompt", "prompt"), min_length=1, description="Tokens of the ranking prompts that shifts are of."
    )
    questions: int = Field(default=120, ge=10, description="Samples of each mixture of an organism's advice.")
    fractions: tuple[float, ...] = Field(default=(0.05, 0.1, 0.25, 0.5), description="Harmful shares of the mixtures.")
    good: tuple[Good, ...] = Field(
        default=GOOD,
        min_length=1,
        description="What the other samples are: helpful answers, those of the personas that are neither helpful nor "
        "malicious, or malicious ones that the user's scene asked for.",
    )
    first: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.25, 0.5), description="Shares of the data, the most suspect first, in which bad is found."
    )
    directions: int = Field(default=200, ge=1, description="Random directions.")
    replicates: int = Field(default=1000, ge=1, description="Of every bootstrap.")


@dataclass(frozen=True)
class Asked:
    """What a monitor is asked about.

    Attributes:
        run: Folder of a finished run.
        extracted: The folder that `extract` wrote for it.
        models: A `ModelSet` of the same base, for the second question.
        data: Chat data set to screen; None: an organism's own advice.
        label: Its column that says which answers are bad.
        traits: The trait sets that `extract` was given.
        judge: Who scores answers; None: the organism's exact judge.
    """

    run: Path
    extracted: Path
    models: Path | None = None
    data: Path | None = None
    label: str = "bad"
    traits: Sequence[str | Path] = ()
    judge: TraitJudge | ModelJudgeConfig | None = None
