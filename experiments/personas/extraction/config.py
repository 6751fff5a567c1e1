"""How directions of traits are extracted."""

from pydantic import BaseModel, ConfigDict, Field

from experiments.personas.extraction.measure import Reading

DEFAULT_POSITIONS: tuple[Reading, ...] = ("answer", "base_answer", "prompt", "last_prompt", "prompt_end")


class ExtractConfig(BaseModel):
    """How directions are extracted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: tuple[Reading, ...] = Field(
        default=DEFAULT_POSITIONS,
        min_length=1,
        description="Tokens averaged: of a model's own answers, of the base's answers (the same tokens in all models), "
        "or of prompts.",
    )
    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    max_new_tokens: int | None = Field(default=None, ge=1, description="None: as many as the run samples, or 200.")
    splits: int = Field(default=200, ge=1, description="Random halves for the split-half reliability.")
    rows: int = Field(
        default=512, ge=2, description="Mean activations kept for nulls with the activations' covariance."
    )
