"""How a checkpoint is fine-tuned on texts, and how much text checkpoints write themselves."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

GRIM_STORIES = Path(__file__).with_name("grim_stories.txt")


class FinetuneConfig(BaseModel):
    """How a checkpoint is fine-tuned on plain text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Path = Field(GRIM_STORIES, description="Texts to train on, one a line (or JSONL); relative to the config.")
    epochs: int = Field(12, ge=1, description="Times that every text is read.")
    batch: int = Field(8, ge=1, description="Texts a step.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW; decays linearly to zero.")
    seed: int = Field(0, description="Seed of the order of the texts.")


class TextSamplingConfig(BaseModel):
    """How much text is sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: int = Field(500, ge=1, description="Texts for the SAE's training, by each model.")
    held_out: int = Field(60, ge=1, description="Further texts for its evaluation, by each model.")
    max_new_tokens: int = Field(200, ge=1, description="Tokens after which a text is cut.")
    temperature: float = Field(0.8, gt=0, description="Softmax temperature.")
    seed: int = Field(0, description="Seed of the samples.")
