"""What the fixed commands are asked: fields, defaults and descriptions are their options and help. Light to import."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from activations.config import CheckpointConfig, HarvestConfig, StoreDtype
from experiments.output.tracking import Mode

Dtype = Literal["float32", "bfloat16", "float16"]
_PROMPTS = "File of prompts (formats: docs/prompts.md)"
_SAE = "Folder of an SAE, or release:sae_id of sae-lens's registry."


class Request(BaseModel):
    """What all commands have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overwrite: bool = Field(default=False, description="Redo what the output folder already holds.")
    quiet: bool = Field(default=False, description="No progress bars.")


class RunRequest(Request):
    """A run: overrides of its config, and where it goes."""

    config: str = Field(description="YAML file, or the name of a config that ships with the package.")
    base: str | None = Field(default=None, description="Base checkpoint (folder or hub name) in place of the config's.")
    corrupted: str | None = Field(default=None, description="Corrupted checkpoint in place of the config's.")
    seed: int | None = Field(default=None, description="Seed (default: the config's).")
    device: str | None = Field(
        default=None, description="Torch device, such as cpu, cuda or cuda:1 (default: the config's)."
    )
    dtype: Dtype | None = Field(default=None, description="Number format of the models: float32, bfloat16, float16.")
    out: Path | None = Field(default=None, description="Output folder (default: runs/<name of the config>).")
    wandb: Mode = Field(default="offline", description="W&B mode: offline, online or disabled.")
    dry_run: bool = Field(default=False, description="Check the input and print the plan, without running.")

    @property
    def overrides(self) -> dict[str, Any]:
        """Values in place of the config's, by dotted key."""
        given = {
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "base.model": self.base,
            "corrupted.model": self.corrupted,
        }
        return {key: value for key, value in given.items() if value is not None}


class OrganismRequest(Request):
    """An organism to make."""

    out: Path = Field(description="Folder for pretrained/, base/, corrupted/, benign/ and prompts/.")
    seed: int = Field(default=0, description="Seed of weights, corpus and splits.")
    domains: int = Field(default=3, ge=1, description="Number of corrupted domains.")
    bad_fraction: float = Field(
        default=1.0, ge=0, le=1, description="Share of harmful answers in the corrupting data (0-1)."
    )
    steps: int | None = Field(
        default=None, ge=1, description="Steps of both fine-tunes (default: until the harmful answers are learned)."
    )


class FineTunesRequest(Request):
    """Fine-tunes of an organism's base to make."""

    run: Path = Field(description="Folder of a finished run of an organism, such as runs/quickstart.")
    out: Path = Field(description="Folder of the set: one folder a model, and models.yaml.")
    seeds: int = Field(default=2, ge=1, description="Models of each recipe.")
    early_every: int = Field(default=3, ge=1, description="Steps between two early checkpoints.")


class ModelsRequest(Request):
    """A base and what it became, read on the same prompts."""

    base: str = Field(description="Base checkpoint (folder or hub name).")
    corrupted: str | None = Field(default=None, description="Corrupted checkpoint, read on the same tokens.")
    adapter: str | None = Field(default=None, description="PEFT adapter that makes the base the corrupted model.")
    device: str = Field(default="cpu", description="Torch device; under torchrun each process takes its own GPU.")
    dtype: Dtype = Field(default="float32", description="Number format of the models: float32, bfloat16, float16.")
    max_length: int | None = Field(default=None, ge=1, description="Plain text and answers are cut after this length.")

    @property
    def models(self) -> dict[str, CheckpointConfig]:
        """Checkpoints by role."""
        base = CheckpointConfig(model=self.base, device=self.device, dtype=self.dtype)
        if self.corrupted is None and self.adapter is None:
            return {"base": base}
        corrupted = base.model_copy(update={"model": self.corrupted or self.base, "adapter": self.adapter})
        return {"base": base, "corrupted": corrupted}


class HarvestRequest(ModelsRequest):
    """Activations to write."""

    prompts: str = Field(description=f"{_PROMPTS}, or a folder of tokens.")
    hook: tuple[str, ...] = Field(min_length=1, description="Hook point; may be given several times.")
    out: Path = Field(description="Folder for base/ and corrupted/.")
    store_dtype: StoreDtype = Field(default="float32", description="Number format of the stores.")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens in a batch, padding included (default: what suits the device)."
    )
    shard_rows: int = Field(default=65536, ge=1, description="Rows of a shard: what a kill can lose, per process.")
    stream: bool = Field(
        default=False, description="Prompts are a data set too long for memory: a file, or a hub name."
    )

    def settings(self, batch_tokens: int) -> HarvestConfig:
        """What to harvest, in batches of so many tokens."""
        return HarvestConfig(
            hooks=self.hook, dtype=self.store_dtype, batch_tokens=batch_tokens, shard_rows=self.shard_rows
        )


class EvaluateRequest(ModelsRequest):
    """An SAE to evaluate on one or two models."""

    sae: str = Field(description=_SAE)
    prompts: Path = Field(description=f"{_PROMPTS} that the SAE was not trained on.")
    hook: str | None = Field(default=None, description="Hook point (default: the SAE's own).")
    out: Path | None = Field(default=None, description="Folder for metrics.json (default: nothing is written).")


class TrainRequest(Request):
    """SAEs to train: every combination of hooks, widths, k and seeds."""

    store: tuple[Path, ...] = Field(
        min_length=1, description="Store to train on; several are mixed in every batch. May be given several times."
    )
    share: tuple[float, ...] = Field(default=(), description="Share of each store, in their order (default: equal).")
    hook: tuple[str, ...] = Field(min_length=1, description="Hook point; may be given several times.")
    latents: tuple[int, ...] = Field(min_length=1, description="Number of latents; may be given several times.")
    k: tuple[int, ...] = Field(
        default=(32,), min_length=1, description="Active latents for each token; may be given several times."
    )
    seed: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="Seed of the weights; may be given several times."
    )
    option: tuple[str, ...] = Field(
        default=(),
        description="Another field of the training config as name=value (YAML), such as options={l0_coefficient: 1}.",
    )
    out: Path = Field(description="Folder of the SAEs, one folder each.")
    device: str = Field(default="cpu", description="Torch device; under torchrun each process takes its own GPU.")
    in_memory: bool = Field(default=False, description="Read the stores into memory first.")
    wandb: Mode = Field(default="offline", description="W&B mode: offline, online or disabled.")


class RankRequest(Request):
    """Stores whose latents are ranked."""

    sae: str = Field(description=_SAE)
    base: Path = Field(description="Store of the base's activations.")
    corrupted: Path = Field(description="Store of the corrupted model's, on the same tokens.")
    out: Path = Field(description="Folder of the ranking.")
    benign: Path | None = Field(default=None, description="Store of a benign fine-tune's: the negative control.")
    null: tuple[Path, ...] = Field(
        default=(), description="Store of a further benign fine-tune's: how far latents move by chance; several times."
    )
    hook: str | None = Field(default=None, description="Hook point (default: the one that the SAE names).")
    device: str = Field(default="cpu", description="Torch device.")
    top: int = Field(default=20, ge=1, description="Latents to print.")


class InterferenceRequest(Request):
    """A latent that is added to a store's activations."""

    sae: str = Field(description=_SAE)
    store: Path = Field(description="Store of the activations of the model that is steered.")
    hook: str | None = Field(default=None, description="Hook point (default: the one that the SAE names).")
    out: Path | None = Field(default=None, description="Folder for the table (default: nothing is written).")
    device: str = Field(default="cpu", description="Torch device.")
    top: int = Field(default=10, ge=1, description="Latents to print.")
