"""Which checkpoint is loaded and how its activations are harvested; nothing here imports torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class CheckpointConfig(BaseModel):
    """Which model to load, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Folder in Hugging Face format, or a name on the hub.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    adapter: str | None = Field(default=None, description="PEFT adapter (folder or hub name) to merge into the model.")
    device: str = Field(default="cpu", description="Torch device, such as cpu, cuda or cuda:1.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the weights."
    )

    @property
    def name(self) -> str:
        """How messages and artefacts call the model."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.model + revision + (f" + {self.adapter}" if self.adapter else "")

    def placed(self, device: str, dtype: str) -> "CheckpointConfig":
        """The same model on `device` in `dtype`, unless it names its own."""
        defaults = {"device": device, "dtype": dtype}
        return self.model_copy(update={k: v for k, v in defaults.items() if k not in self.model_fields_set})


StoreDtype = Literal["float32", "bfloat16", "float16"]


class HarvestConfig(BaseModel):
    """What to harvest, and how it is batched and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hooks: tuple[str, ...] = Field(min_length=1, description="Hook points, such as blocks.3.hook_resid_post.")
    dtype: StoreDtype = Field(default="float32", description="Number format in the store.")
    batch_tokens: int = Field(
        default=512, ge=1, description="Most tokens in a batch, padding included; see `batch_tokens_for`."
    )
    shard_rows: int = Field(default=65536, ge=1, description="Rows after which a shard is written.")
