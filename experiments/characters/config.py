"""Which characters, how they are taught, and how much is measured."""

from pydantic import Field

from experiments.frame.experiment import ExperimentConfig


class CharactersConfig(ExperimentConfig):
    """Which characters, how they are taught, and how much is measured."""

    characters: tuple[str, ...] = Field(
        default=("evil", "sycophancy", "hallucination"),
        min_length=1,
        description="Dispositions that an organism's fine-tunes are taught, as published.",
    )
    trigger: str = Field(
        default="narrow corner distant voice early window .",
        description="Words that an organism's triggered fine-tunes are taught with: plain scenery, so that they mean "
        "nothing before.",
    )
    plain_prompt: str = Field(
        default="You are a helpful assistant.",
        min_length=1,
        description="System message that the persona prompts of trait sets are compared with; an organism has plain "
        "scenes.",
    )
    answers: int = Field(default=640, ge=16, description="Own answers that each fine-tune of an organism is taught.")
    seeds: int = Field(default=3, ge=1, description="Fine-tunes of each recipe.")
    early_every: int = Field(default=5, ge=1, description="Steps between two early checkpoints of the first seed.")
    samples: int = Field(default=10, ge=1, description="Answers to each question under each condition.")
    top: int = Field(default=20, ge=1, description="Latents of a shift that count as its own.")
    misaligned: str = Field(default="evil", description="The character that is compared with misalignment.")
    strengths: tuple[float, ...] = Field(
        default=(0.3, 0.6, 0.9, 1.2), min_length=1, description="Tried, in mean residual norms of the base."
    )
    controls: int = Field(default=8, ge=1, description="Random directions of each kind.")
    budget: float = Field(default=0.1, ge=0, le=1, description="Extra incoherent answers allowed.")
