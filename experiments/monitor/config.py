"""What the monitor samples and screens, and how that is tested."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from experiments.frame.experiment import ExperimentConfig

# What the good samples of a mixture are. Compared with helpful answers any others stand out, bad or not. Other
# personas' answers are unlike the model's own, too. Requested samples have answers like the bad ones, but the user's
# scene asked for them, and training on such data (the fine-tunes called educational) does not misalign the organism.
Good = Literal["helpful", "other personas", "requested"]
GOOD: tuple[Good, ...] = get_args(Good)


class MonitorConfig(ExperimentConfig):
    """What is sampled and screened, and how that is tested."""

    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    positions: tuple[Literal["last_prompt", "prompt"], ...] = Field(
        default=("last_prompt", "prompt"),
        min_length=1,
        description="Tokens of the ranking prompts that shifts are means over: last_prompt, prompt.",
    )
    data: Path | None = Field(
        default=None, description="Chat data set to screen (JSONL; default: an organism's own advice)."
    )
    label: str = Field(default="bad", description="Column of the data set that says which answers are bad.")
    questions: int = Field(default=120, ge=10, description="Samples of each mixture of an organism's advice.")
    fractions: tuple[float, ...] = Field(default=(0.05, 0.1, 0.25, 0.5), description="Harmful shares of the mixtures.")
    good: tuple[Good, ...] = Field(
        default=GOOD,
        min_length=1,
        description="What the other samples are: helpful answers, those of the personas that are neither helpful nor "
        "malicious (other personas), or malicious ones that the user's scene asked for (requested).",
    )
    first: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.25, 0.5), description="Shares of the data, the most suspect first, in which bad is found."
    )
    directions: int = Field(default=200, ge=1, description="Random directions.")
    replicates: int = Field(default=1000, ge=1, description="Replicates of every bootstrap.")

    @field_validator("data")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """So that the same file is the same from any folder."""
        return None if path is None else path.resolve()
