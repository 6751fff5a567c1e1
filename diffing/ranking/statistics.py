"""Per-prompt statistics of latents, and the inference on their paired differences.

The prompt is the independent unit everywhere (tokens of one prompt are not). Sums are accumulated in float64 while the
store streams by, so memory grows with prompts x latents and never with tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from sae_lens import SAE
from scipy.special import stdtr
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.positions import Positions, RowIndex, RowMask, rows_at

# Values (rows x latents, or replicates x latents) held at once; bounds memory for SAEs with many latents.
_BLOCK_VALUES = 2**24


@dataclass(frozen=True)
class LatentMeans:
    """What one model's latents did on one set of prompts.

    Attributes:
        activity: Mean activation of each latent over the chosen positions of each prompt; NaN where a prompt has none.
        frequency: Fraction of the chosen rows (all prompts together) on which each latent is active.
        maximum: Largest activation of each latent on the chosen rows.
        activation: Mean residual vector over the chosen positions of each prompt; NaN where a prompt has none.
        rows: Number of chosen positions in each prompt.
    """

    activity: Float64[np.ndarray, "prompt latent"]
    frequency: Float64[np.ndarray, "latent"]
    maximum: Float64[np.ndarray, "latent"]
    activation: Float64[np.ndarray, "prompt d_model"]
    rows: Int[np.ndarray, "prompt"]


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


def prompt_means(
    sae: SAE, store: ActivationSource, hook: str, positions: Positions, progress: bool = False
) -> LatentMeans:
    """Statistics of every latent at these positions of `store`, in one pass.

    Raises:
        UserError: if the SAE's d_model is not that of the stored activations.
    """
    device, latents = sae.W_dec.device, sae.W_dec.shape[0]
    activity = _PromptSums(len(store.prompt_ids), latents, device)
    activation = _PromptSums(len(store.prompt_ids), store.d_model(hook), device)
    active = torch.zeros(latents, dtype=torch.int64, device=device)
    maximum = torch.zeros(latents, dtype=sae.W_dec.dtype, device=device)
    for inputs, encoded, index in encoded_rows(sae, store, hook, rows_at(positions, store), progress):
        activity.add(encoded, index["prompt"])
        activation.add(inputs, index["prompt"])
        active += (encoded > 0).sum(0)
        maximum = torch.maximum(maximum, encoded.amax(0))
    return LatentMeans(
        activity=activity.means(),
        frequency=active.cpu().numpy() / max(int(activity.rows.sum()), 1),
        maximum=maximum.double().cpu().numpy(),
        activation=activation.means(),
        rows=activity.rows,
    )


def activation_means(store: ActivationSource, hook: str, positions: Positions) -> Float64[np.ndarray, "prompt d_model"]:
    """Mean stored activation over the chosen positions of each prompt; NaN where a prompt has none."""
    sums = _PromptSums(len(store.prompt_ids), store.d_model(hook), torch.device("cpu"))
    keep = rows_at(positions, store)
    for activations, index in store.chunks(hook):
        mask = keep(index)
        sums.add(activations[torch.from_numpy(mask)], index["prompt"][mask])
    return sums.means()


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


def paired_t(
    differences: Float64[np.ndarray, "prompt latent"],
) -> tuple[Float64[np.ndarray, "latent"], Float64[np.ndarray, "latent"]]:
    """Student's paired t and its two-sided p for each latent, from paired differences.

    A latent whose differences are all zero has t = 0 and p = 1; all equal but not zero, t = +-inf and p = 0.
    """
    prompts = len(differences)
    mean = differences.mean(0)
    error = differences.std(0, ddof=1) / np.sqrt(prompts)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, mean / error)
    return t, 2 * stdtr(prompts - 1, -np.abs(t))


def benjamini_hochberg(p: Float64[np.ndarray, "latent"]) -> Float64[np.ndarray, "latent"]:
    """False-discovery-rate adjusted q-values (Benjamini & Hochberg 1995); a NaN p is no test and stays NaN."""
    tested = np.flatnonzero(~np.isnan(p))
    descending = tested[np.argsort(-p[tested], kind="stable")]
    ranks = np.arange(len(tested), 0, -1)
    q = np.full(len(p), np.nan)
    # The smallest p * m / rank among this p and all larger ones.
    q[descending] = np.minimum.accumulate(np.minimum(p[descending] * len(tested) / ranks, 1.0))
    return q


def bootstrap_interval(
    differences: Float64[np.ndarray, "prompt latent"], replicates: int, confidence: float, seed: int
) -> tuple[Float64[np.ndarray, "latent"], Float64[np.ndarray, "latent"]]:
    """Percentile bootstrap interval of each latent's mean difference; prompts are resampled, for all latents alike.

    Returns:
        Lower and upper ends, of coverage `confidence` (Efron's percentile interval).
    """
    prompts, latents = differences.shape
    weights = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=replicates) / prompts
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    width = max(1, _BLOCK_VALUES // replicates)
    blocks = [
        np.quantile(weights @ differences[:, start : start + width], tails, axis=0)
        for start in range(0, latents, width)
    ]
    low, high = np.concatenate(blocks, axis=1)
    return low, high
