"""What a model shows while it reads prompts, before any answer: what predictions are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Float64
from sae_lens import SAE
from scipy.sparse import csr_array, vstack
from torch import Tensor

from activations.artefact import finish_artefact, publish, read_config
from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations
from activations.tokens import TokenBatch
from diffing.kl import mean_kl
from diffing.ranking.prompt_blocks import PromptMeans, prompt_blocks

_FILE = "reading.npz"


@dataclass(frozen=True)
class ModelReading:
    """Means over the tokens of each prompt (float64).

    Attributes:
        ids: Ids of the prompts.
        activity: Mean activation of each latent [prompt latent]; few latents are ever active on a prompt.
        activation: Mean activation at the hook.
        kl: Mean KL(base || model) of the next token, in nats; zero for the base itself.
    """

    ids: tuple[str, ...]
    activity: csr_array
    activation: Float64[np.ndarray, "prompt d_model"]
    kl: Float64[np.ndarray, "prompt"]

    KIND: ClassVar[str] = "model_reading"

    def save(self, folder: Path, config: dict[str, object]) -> None:
        """Writes the artefact; `config` says which model read what."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_FILE}"
        sparse = {name: getattr(self.activity, name) for name in ("data", "indices", "indptr", "shape")}
        np.savez_compressed(temporary, ids=np.array(self.ids), activation=self.activation, kl=self.kl, **sparse)
        publish(temporary, folder / _FILE)
        finish_artefact(folder, {**config, "kind": self.KIND})

    @classmethod
    def load(cls, folder: Path) -> "ModelReading":
        """Reads the artefact.

        Raises:
            UserError: if the folder is missing, unfinished, damaged, or of another kind.
        """
        read_config(folder, cls.KIND)
        try:
            with np.load(folder / _FILE) as file:
                sparse = csr_array((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
                return cls(tuple(file["ids"].tolist()), sparse, file["activation"], file["kl"])
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise UserError(f"{folder / _FILE} cannot be read ({error}); delete {folder} and run again.") from error


@dataclass(frozen=True)
class Shifts:
    """How a model's reading differs from the base's, in the mean over prompts.

    Attributes:
        latents: Shift of each latent's mean activity, in the SAE's units.
        direction: Projection of the mean activation's shift on a unit direction.
        norm: Euclidean norm of the mean activation's shift.
        kl: Mean KL(base || model), nats a token.
    """

    latents: Float64[np.ndarray, "latent"]
    direction: float
    norm: float
    kl: float


def read_model(
    sae: SAE, checkpoint: Checkpoint, base: Checkpoint, tokens: TokenBatch, hook: str, config: HarvestConfig
) -> ModelReading:
    """Reads prompts with a model; nothing but means over prompt tokens is kept.

    Args:
        sae: Encodes the activations.
        checkpoint: The model.
        base: The model that KL compares it with; the same object for the base itself.
        tokens: The prompts.
        hook: Hook point.
        config: How activations are computed.

    Raises:
        UserError: if SAE, hook or vocabulary do not fit the model, or a prompt has no tokens before its answer.
    """
    live = LiveActivations(checkpoint, tokens, config)
    ids: list[str] = []
    activity: list[csr_array] = []
    activation: list[Tensor] = []
    for block in prompt_blocks(sae, {checkpoint.role: live}, hook, "prompt"):
        means = block.means[checkpoint.role]
        ids += _with_rows(block.ids, means)
        activity.append(csr_array(means.activity.cpu().numpy()))
        activation.append(means.activation.cpu())
    kl = dict(zip(tokens.ids, _kl(base, checkpoint, tokens), strict=True))
    return ModelReading(
        tuple(ids), csr_array(vstack(activity)), torch.cat(activation).numpy(), np.array([kl[id] for id in ids])
    )


def shifts(base: ModelReading, model: ModelReading, unit: Float[Tensor, "d_model"]) -> Shifts:
    """How `model` differs from `base`.

    Args:
        base: The base's reading.
        model: The model's, of the same prompts.
        unit: Unit vector that the shift of the mean activation is projected on.

    Raises:
        ValueError: if they read other prompts.
    """
    _require_same_prompts(base, model)
    moved = model.activation.mean(0) - base.activation.mean(0)
    return Shifts(
        latents=model.activity.mean(0) - base.activity.mean(0),
        direction=float(moved @ unit.double().cpu().numpy()),
        norm=float(np.linalg.norm(moved)),
        kl=float(model.kl.mean()),
    )


def prompt_shifts(
    base: ModelReading, model: ModelReading, unit: Float[Tensor, "d_model"], latent: int
) -> Float64[np.ndarray, "prompt 3"]:
    """The same for each prompt, of one latent: its shift, the projection on the direction, and KL.

    Raises:
        ValueError: if they read other prompts.
    """
    _require_same_prompts(base, model)
    activity = (model.activity[:, [latent]] - base.activity[:, [latent]]).toarray()[:, 0]
    projection = (model.activation - base.activation) @ unit.double().cpu().numpy()
    return np.stack([activity, projection, model.kl], axis=1)


def _with_rows(ids: Sequence[str], means: PromptMeans) -> Sequence[str]:
    """The ids, if all of the prompts have rows."""
    if not (means.rows > 0).all():
        empty = ids[int((means.rows == 0).nonzero()[0])]
        raise UserError(f"Prompt '{empty}' has no tokens before its answer; leave it out.")
    return ids


def _kl(base: Checkpoint, model: Checkpoint, tokens: TokenBatch) -> Float64[np.ndarray, "prompt"]:
    return np.zeros(len(tokens)) if model is base else mean_kl(base, model, tokens)


def _require_same_prompts(base: ModelReading, model: ModelReading) -> None:
    if base.ids != model.ids:
        raise ValueError(f"Expected readings of the same prompts, got {len(base.ids)} and {len(model.ids)} others")
