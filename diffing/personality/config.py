"""How directions of traits are extracted."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TRAIT_DIRECTIONS = "trait-directions"  # the experiment that extracts them, and the kind of its result
# What is read, and which tokens of it are averaged: prompts up to the answer, a model's own answers, or the base's.
TraitPositions = Literal["answer", "base_answer", "prompt", "last_prompt", "prompt_end"]
ANSWER: TraitPositions = "answer"
BASE_ANSWER: TraitPositions = "base_answer"
ANSWERS: tuple[TraitPositions, ...] = (ANSWER, BASE_ANSWER)


class ExtractionConfig(BaseModel):
    """How directions of traits are extracted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: tuple[TraitPositions, ...] = Field(
        default=("answer", "base_answer", "prompt", "last_prompt", "prompt_end"),
        min_length=1,
        description="Tokens averaged: of a model's own answers, of the base's answers (the same tokens in all models), "
        "or of prompts: answer, base_answer, prompt, last_prompt, prompt_end.",
    )
    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Tokens after which an answer is cut (default: as the run samples, or 200)."
    )
    splits: int = Field(default=200, ge=1, description="Random halves for the split-half reliability.")
    rows: int = Field(
        default=512, ge=2, description="Mean activations kept for nulls with the activations' covariance."
    )
