"""Means within prompts of one model's activations, and its rows with their latents, streamed from a store.

Sums are accumulated in float64 while the store streams by, so memory grows with prompts and never with tokens.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.positions import Positions
from diffing.row_filters import RowIndex, RowMask, rows_at

# Values (rows x latents) held at once; bounds memory for SAEs with many latents.
_BLOCK_VALUES = 2**24


class _PromptSums:
    """Running float64 sums of rows, one for each prompt."""

    def __init__(self, prompts: int, width: int, device: torch.device) -> None:
        self._sums = torch.zeros(prompts, width, dtype=torch.float64, device=device)
        self.rows = np.zeros(prompts, dtype=np.int64)

    def add(self, values: Float[Tensor, "rows width"], prompt: Int[np.ndarray, "rows"]) -> None:
        index = torch.as_tensor(prompt, dtype=torch.int64, device=self._sums.device)
        self._sums.index_add_(0, index, values.to(self._sums))
        self.rows += np.bincount(prompt, minlength=len(self.rows))

    def means(self) -> Float64[np.ndarray, "prompt width"]:
        with np.errstate(invalid="ignore"):
            return self._sums.cpu().numpy() / self.rows[:, None]


def residual_norm(store: ActivationSource, hook: str) -> float:
    """Mean norm of the activations on prompt tokens: the unit of steering strengths, if the model is the base.

    Raises:
        UserError: if the store has no prompt tokens, or lacks the hook.
    """
    total, rows, keep = 0.0, 0, rows_at(store, "prompt")
    for activations, index in store.chunks(hook):
        norms = activations[torch.from_numpy(keep(index))].double().norm(dim=1)
        total, rows = total + float(norms.sum()), rows + len(norms)
    if not rows:
        raise UserError(f"{store.name} has no prompt tokens, whose mean norm is the unit of strengths; harvest some.")
    return total / rows


def activation_means(store: ActivationSource, hook: str, positions: Positions) -> Float64[np.ndarray, "prompt d_model"]:
    """Mean stored activation over the chosen positions of each prompt; NaN where a prompt has none."""
    sums = _PromptSums(len(store.prompt_ids), store.d_model(hook), torch.device("cpu"))
    keep = rows_at(store, positions)
    for activations, index in store.chunks(hook):
        mask = keep(index)
        sums.add(activations[torch.from_numpy(mask)], index["prompt"][mask])
    return sums.means()


def latent_means(
    sae: SAE, store: ActivationSource, hook: str, positions: Positions
) -> Float64[np.ndarray, "prompt latent"]:
    """Mean latent activations over the chosen positions of each prompt; NaN where a prompt has none.

    Raises:
        UserError: if the SAE's d_model is not that of the stored activations.
    """
    sums = _PromptSums(len(store.prompt_ids), sae.W_dec.shape[0], sae.W_dec.device)
    for _, encoded, index in encoded_rows(sae, store, hook, rows_at(store, positions)):
        sums.add(encoded, index["prompt"])
    return sums.means()


def reconstruction_means(
    sae: SAE, store: ActivationSource, hook: str, positions: Positions
) -> tuple[Float64[np.ndarray, "prompt d_model"], Float64[np.ndarray, "prompt d_model"]]:
    """Mean activation, and mean of what the SAE makes of it, over the chosen positions of each prompt.

    Returns:
        Both means; NaN where a prompt has no such position.

    Raises:
        UserError: if the SAE's d_model is not that of the stored activations.
    """
    device = sae.W_dec.device
    activation, reconstruction = (_PromptSums(len(store.prompt_ids), store.d_model(hook), device) for _ in range(2))
    for inputs, encoded, index in encoded_rows(sae, store, hook, rows_at(store, positions)):
        activation.add(inputs, index["prompt"])
        reconstruction.add(_decode(sae, encoded), index["prompt"])
    return activation.means(), reconstruction.means()


def encoded_rows(
    sae: SAE, store: ActivationSource, hook: str, keep: Callable[[RowIndex], RowMask], progress: bool = False
) -> Iterator[tuple[Float[Tensor, "rows d_model"], Float[Tensor, "rows latent"], RowIndex]]:
    """Stream the rows that `keep` chooses, in row order: (activations, latent activations, row index).

    Raises:
        UserError: if the SAE's d_model is not that of the stored activations.
    """
    latents, d_model = sae.W_dec.shape
    if d_model != store.d_model(hook):
        raise UserError(
            f"SAE expects d_model={d_model}, activations of {hook} have {store.d_model(hook)} ({store.name}); "
            "pick an SAE that was trained on this model and hook, or harvest the model that it was trained on."
        )
    rows = max(1, _BLOCK_VALUES // latents)
    with tqdm(total=store.rows, unit=" rows", desc="encode", disable=not progress, leave=False) as bar:
        for activations, index in store.chunks(hook):
            chosen = np.flatnonzero(keep(index))
            for start in range(0, len(chosen), rows):
                block = chosen[start : start + rows]
                inputs = activations[torch.from_numpy(block)].to(sae.W_dec)
                yield inputs, _encode(sae, inputs), {name: column[block] for name, column in index.items()}
            bar.update(len(activations))


@torch.no_grad()
def _encode(sae: SAE, inputs: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows latent"]:
    return sae.encode(inputs)


@torch.no_grad()
def _decode(sae: SAE, encoded: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows d_model"]:
    return sae.decode(encoded)
