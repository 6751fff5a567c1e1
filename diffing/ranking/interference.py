"""Which latents a steered latent co-activates, though the data never shows them together.

Adding a decoder row moves every latent whose encoder column is not orthogonal to it. If such a latent is active
together with the steered one in data, that may be meaning; if it never is, it is interference: an effect of steering
that the steered latent does not stand for. No published recipe is followed; the choices are those documented here.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float64, Int
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.geometry import cosines, unit_rows
from diffing.positions import Positions
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.prompt_blocks import require_width
from diffing.row_filters import RowIndex, RowMask, rows_at
from sae.encode import ActivePairs, encode_active


def interference(
    sae: SAE,
    store: ActivationSource,
    hook: str,
    residual_norm: float,
    config: InterferenceConfig,
    progress: bool = False,
) -> pd.DataFrame:
    """What adding `strength * residual_norm * u` to the rows does to every latent; u is the latent's unit decoder row.

    The rows are read once and encoded twice, as they are and with the vector added.

    Args:
        sae: Encodes the activations.
        store: Activations of the model that is steered.
        hook: Hook point of the activations.
        residual_norm: Mean residual norm of the base at the hook over prompt tokens.
        config: The latent, the strength, the positions, and what counts as moved.
        progress: Shows a bar.

    Returns:
        One row for each latent, the steered one among them, in order of |change|:

        latent: Index in the SAE.
        change: Mean activity with the vector minus without, within prompts and then over prompts [activation].
        cosine: Signed cosine of its decoder row with u.
        overlap: Its encoder column times u: what a unit of u adds to its pre-activation.
        active_rows, co_active_rows: Rows without steering on which it is active; on which both are.
        expected_rows: Co-active rows if both were independent; far below 1, that there are none says nothing.
        phi: Correlation of being active, over rows without steering; NaN if either is never or always active.
        moved: Another latent, whose change is large enough (`moved_from`).
        moved_never_co_active: One that moved, and is on no row active together with the steered one.

    Raises:
        UserError: if there is no such latent, its decoder row is zero, the vector to add is zero or not finite, the
            SAE's d_model does not fit, or no prompt has tokens at the positions.
    """
    require_width(sae, {store.name: store}, hook)
    unit = _unit_row(sae, config.latent)
    vector = _length(config.strength, residual_norm) * unit
    keep = rows_at(store, config.positions)
    weights = _row_weights(store, keep, config.positions)
    counts = _Counts(sae.cfg.d_sae, config.latent, sae.device)
    with tqdm(total=store.rows, unit=" rows", desc="steer", disable=not progress, leave=False) as bar:
        for activations, index in store.chunks(hook):
            mask = keep(index)
            rows = activations[torch.from_numpy(mask)].to(sae.device)
            steered = rows + vector.to(rows)
            weight = torch.from_numpy(weights[index["prompt"][mask]]).to(sae.device)
            counts.add(encode_active(sae, rows), encode_active(sae, steered), weight)
            bar.update(len(activations))
    return _table(counts, sae, unit, config.moved_from)


class _Counts:
    """What is summed over the rows, for every latent."""

    def __init__(self, latents: int, steered: int, device: torch.device) -> None:
        self.steered, self.rows = steered, 0
        self.change = torch.zeros(latents, dtype=torch.float64, device=device)
        self.active, self.co_active = (torch.zeros(latents, dtype=torch.int64, device=device) for _ in range(2))

    def add(self, plain: ActivePairs, steered: ActivePairs, weight: Float64[Tensor, "rows"]) -> None:
        """Some rows, without and with steering."""
        latents = len(self.change)
        for sign, pairs in ((-1, plain), (1, steered)):
            values = sign * pairs.value.double() * weight[pairs.row]
            self.change.index_add_(0, pairs.latent, values)
        with_steered = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        with_steered[plain.row[plain.latent == self.steered]] = True
        self.active += torch.bincount(plain.latent, minlength=latents)
        self.co_active += torch.bincount(plain.latent[with_steered[plain.row]], minlength=latents)
        self.rows += len(weight)


def _table(counts: _Counts, sae: SAE, unit: Float64[Tensor, "d_model"], moved_from: float) -> pd.DataFrame:
    change, active, co_active = (values.cpu().numpy() for values in (counts.change, counts.active, counts.co_active))
    size, own = np.abs(change), counts.steered
    moved = (size > 0) & (size >= moved_from * size.max()) & (np.arange(len(change)) != own)
    table = pd.DataFrame(
        {
            "latent": np.arange(len(change)),
            "change": change,
            "cosine": cosines(sae.W_dec, unit[None])[:, 0].cpu().numpy(),
            "overlap": einsum(sae.W_enc.detach().double(), unit, "d_model latent, d_model -> latent").cpu().numpy(),
            "active_rows": active,
            "co_active_rows": co_active,
            "expected_rows": active * (active[own] / counts.rows),
            "phi": _phi(co_active, active, active[own], counts.rows),
            "moved": moved,
            "moved_never_co_active": moved & (co_active == 0),
        }
    )
    # A stable sort: latents of equal size stand in order of their index.
    return table.iloc[np.argsort(-size, kind="stable")].reset_index(drop=True)


def _phi(
    both: Int[np.ndarray, "latent"], active: Int[np.ndarray, "latent"], own: np.int64, rows: int
) -> Float64[np.ndarray, "latent"]:
    """Correlation of two binary variables from their counts."""
    # As floats, because the products of four counts overflow integers.
    a, b, n = active.astype(float), float(own), float(rows)
    with np.errstate(invalid="ignore"):
        return (n * both - a * b) / np.sqrt(a * (n - a) * b * (n - b))


def _row_weights(
    store: ActivationSource, keep: Callable[[RowIndex], RowMask], positions: Positions
) -> Float64[np.ndarray, "prompt"]:
    """What a row of each prompt weighs, so that a weighted sum of rows is a mean over prompts of means within them."""
    rows = np.zeros(len(store.prompt_ids), dtype=np.int64)
    for number in range(store.shards):
        index = store.shard_index(number)
        rows += np.bincount(index["prompt"][keep(index)], minlength=len(rows))
    if not rows.any():
        raise UserError(f"No prompt of {store.name} has tokens at the positions '{positions}'; choose other positions.")
    return 1 / (np.maximum(rows, 1) * np.count_nonzero(rows))


def _length(strength: float, residual_norm: float) -> float:
    length = strength * residual_norm
    if not np.isfinite(length) or length == 0:
        raise UserError(
            f"Strength {strength} times residual norm {residual_norm} adds no finite vector; give both as finite "
            "numbers other than zero."
        )
    return length


def _unit_row(sae: SAE, latent: int) -> Float64[Tensor, "d_model"]:
    if not 0 <= latent < sae.cfg.d_sae:
        raise UserError(f"The SAE has no latent {latent}; choose one from 0 to {sae.cfg.d_sae - 1}.")
    unit = unit_rows(sae.W_dec[latent][None])[0]
    if not unit.any():
        raise UserError(f"The decoder row of latent {latent} is zero, so it cannot be added; steer another latent.")
    return unit
