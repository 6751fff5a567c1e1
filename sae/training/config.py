"""What a training run of an SAE is made of."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Architecture = Literal["topk", "batchtopk", "standard", "gated", "jumprelu", "matryoshka_batchtopk"]
Log = Callable[[str, dict[str, int | float]], None]
# Steps between two lines of metrics.
LOG_EVERY = 50
OURS: tuple[Architecture, ...] = ("topk", "batchtopk")


class TrainConfig(BaseModel):
    """What a training run is made of; `batch` rows a step for `steps` steps.

    `topk` and `batchtopk` are trained by our engine, which all fields but `options` belong to. The other
    architectures are trained by sae-lens: of them `latents`, `k`, `lr`, `batch`, `steps`, `warmup`, `decay` and
    `seed` are meant, and `options` holds further fields of sae-lens's own config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = Field(default="topk", description="Kind of SAE.")
    latents: int = Field(gt=0, description="Number of latents (SAE width).")
    k: int = Field(default=8, gt=0, description="Latents active for each token (batchtopk: on average over a batch).")
    lr: float = Field(default=2e-3, gt=0, description="Peak learning rate of Adam.")
    batch: int = Field(default=2048, gt=0, description="Tokens in each step, on all ranks together.")
    steps: int = Field(default=2000, gt=0, description="Optimiser steps.")
    warmup: float = Field(default=0.02, ge=0, le=1, description="Share of the steps over which the rate rises.")
    decay: float = Field(default=0.6, ge=0, le=1, description="Share of the steps, at the end, over which it falls.")
    clip: float = Field(default=1.0, gt=0, description="Largest global gradient norm; larger ones are scaled down.")
    centre: Literal["mean", "geometric_median"] = Field(
        default="mean", description="Where b_dec starts, taken over a sample of the activations."
    )
    aux_k: int = Field(default=16, ge=0, description="Dead latents that AuxK trains on each token; 0 turns it off.")
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="Weight of the AuxK loss.")
    dead_after: int = Field(default=50_000, gt=0, description="Tokens without activation after which a latent is dead.")
    encode_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Number format of the encode product; weights and optimiser stay float32."
    )
    seed: int = Field(default=0, description="Seed of the initial weights.")
    options: dict[str, Any] = Field(
        default={}, description="Further fields of sae-lens's training config, for the architectures that it trains."
    )
