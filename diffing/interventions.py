"""What steering does to the residual stream, with a row of its own for every sequence of the batch.

Formulas (METHODS: "Steering"): add `h + c*r*u`; ablate a latent `h - a_i(h) d_i`; ablate a direction `h - (h.u)u`, or
with the base's mean projection put back, `h - (h.u)u + m u`. Cap (Lu et al. 2026, arXiv 2601.10387): only where
`h.u` is less than a floor, raise it to that, `h + max(0, f - h.u) u`.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from einops import einsum, rearrange
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor


@runtime_checkable
class Intervention(Protocol):
    """Changes the activations of a batch at one hook, row by row."""

    def __call__(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]: ...

    def take(self, rows: Int[Tensor, "taken"]) -> "Intervention":
        """The intervention for a batch made of these rows (rows may repeat)."""
        ...


@dataclass(frozen=True)
class Steered:
    """An intervention at a hook, under several arms at once.

    Attributes:
        hook: Where it acts.
        intervention: One row for each arm.
        arms: Number of arms.
    """

    hook: str
    intervention: Intervention
    arms: int = 1

    def of(self, arms: Int[Tensor, "row"]) -> "Steered":
        """The same for a batch whose rows belong to these arms (arms may repeat)."""
        return Steered(self.hook, self.intervention.take(arms), len(arms))

    def hooks(self) -> dict[str, Intervention]:
        """What `Checkpoint.hooks` takes."""
        return {self.hook: self.intervention}


@dataclass(frozen=True)
class Add:
    """Adds each row's vector at every position; a zero vector leaves the row untouched."""

    vectors: Float[Tensor, "batch d_model"]

    def __call__(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return h + rearrange(self.vectors, "batch d_model -> batch 1 d_model").to(h.dtype)

    def take(self, rows: Int[Tensor, "taken"]) -> "Add":
        return Add(self.vectors[rows])


@dataclass(frozen=True)
class AblateDirection:
    """Takes each row's unit vector out of every position and puts `means` of it back (0: plain ablation)."""

    units: Float[Tensor, "batch d_model"]
    means: Float[Tensor, "batch"]

    def __call__(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        units = self.units.to(h.dtype)
        projection = einsum(h, units, "batch pos d_model, batch d_model -> batch pos")
        change = rearrange(self.means.to(h.dtype), "batch -> batch 1") - projection
        return h + einsum(change, units, "batch pos, batch d_model -> batch pos d_model")

    def take(self, rows: Int[Tensor, "taken"]) -> "AblateDirection":
        return AblateDirection(self.units[rows], self.means[rows])


@dataclass(frozen=True)
class Cap:
    """Raises each position's projection on its row's unit vector to the row's floor where it is less."""

    units: Float[Tensor, "batch d_model"]
    floors: Float[Tensor, "batch"]

    def __call__(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        units = self.units.to(h.dtype)
        projection = einsum(h, units, "batch pos d_model, batch d_model -> batch pos")
        missing = (rearrange(self.floors.to(h.dtype), "batch -> batch 1") - projection).clamp(min=0)
        return h + einsum(missing, units, "batch pos, batch d_model -> batch pos d_model")

    def take(self, rows: Int[Tensor, "taken"]) -> "Cap":
        return Cap(self.units[rows], self.floors[rows])


@dataclass(frozen=True)
class AblateLatent:
    """Takes one latent's own contribution, `a_i(h) d_i`, out of every position of each row."""

    sae: SAE
    latents: Int[Tensor, "batch"]

    def __call__(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        index = self.latents.view(-1, 1, 1).expand(-1, h.shape[1], 1)
        activity = self.sae.encode(h.to(self.sae.dtype)).gather(-1, index)
        rows = self.sae.W_dec[self.latents]
        if getattr(self.sae.cfg, "rescale_acts_by_decoder_norm", False):
            # Such an SAE counts activity in units of the row's norm and divides by it when it decodes.
            rows = rows / rows.norm(dim=-1, keepdim=True)
        return h - (activity * rearrange(rows, "batch d_model -> batch 1 d_model")).to(h.dtype)

    def take(self, rows: Int[Tensor, "taken"]) -> "AblateLatent":
        return AblateLatent(self.sae, self.latents[rows])
