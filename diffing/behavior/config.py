"""How answers are sampled, and how a language model judges them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SamplingConfig(BaseModel):
    """How answers are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=20, ge=1, description="Answers sampled for each question.")
    max_new_tokens: int = Field(default=24, ge=1, description="Tokens after which an answer is cut.")
    temperature: float = Field(default=1.0, gt=0, description="Softmax temperature.")
    seed: int = Field(default=0, description="Seed of the random numbers that all arms share.")
    batch_rows: int = Field(
        default=4096, ge=1, description="Sequences generated at once; lower it when memory runs out."
    )


class ModelJudgeConfig(BaseModel):
    """Which language model judges, and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern="^https?://", description="The API, such as http://localhost:8000/v1.")
    model: str = Field(min_length=1, description="Name under which the server knows the judge.")
    key_variable: str = Field(
        default="OPENAI_API_KEY", description="Environment variable with the key; without it 'none' is sent."
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        description="None: expected value over the first token. A number: mean of so many sampled answers.",
    )
    least_probability: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Probability of numbers below which there is no score (as in the code of Betley et al.); of "
        "samples, their share.",
    )
    concurrency: int = Field(default=16, ge=1, description="Requests at once.")
    retries: int = Field(default=5, ge=0, description="Of a request that fails or is turned away, with growing waits.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds that a request may take.")

    def identity(self) -> dict[str, Any]:
        """What scores depend on: a judge that moved to another address is the same judge."""
        return self.model_dump(include={"model", "samples", "least_probability"})
