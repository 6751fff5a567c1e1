"""Ranking of latents by how they changed between two models (Wang et al. 2025, arXiv 2506.19823, and others).

Which positions are averaged is not published; prompt tokens are the default (as in BLOCK-EM, arXiv 2602.00767). The
means of single prompts are averaged, so long prompts weigh no more than short ones, and prompts are the units of the
paired t, of the bootstrap and of the sign flips. All ranking methods are computed in one pass; `RankingConfig.method`
says which one orders the table.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Shaped
from sae_lens import SAE
from torch import Tensor

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.geometry import unit_rows
from diffing.positions import Positions
from diffing.ranking.config import RankingConfig
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.methods import METHODS
from diffing.ranking.prompt_blocks import PositionSums, PromptMeans, prompt_blocks
from diffing.statistics.bootstrap import stability
from diffing.statistics.hypothesis import benjamini_hochberg, sign_flip_p
from diffing.statistics.intervals import percentile_ends
from diffing.statistics.paired import Moments, Replicates

_COMPARED: tuple[Positions, ...] = ("prompt", "last_prompt", "answer", "all")


@dataclass(frozen=True)
class Compared:
    """Activations that a ranking compares, all on identical tokens in the same order.

    Attributes:
        base: The base's on the evaluation prompts.
        corrupted: The corrupted model's.
        benign: A benign fine-tune's: the negative control.
        null: Further benign fine-tunes by name (such as `benign` with other seeds): how far latents move in fine-tunes
            that change nothing of interest. Only their mean shifts are computed.
    """

    base: ActivationSource
    corrupted: ActivationSource
    benign: ActivationSource | None = None
    null: Mapping[str, ActivationSource] = field(default_factory=dict)

    def stores(self) -> dict[str, ActivationSource]:
        """All of them, by model."""
        control = {"benign": self.benign} if self.benign is not None else {}
        return {"base": self.base, "corrupted": self.corrupted, **control, **self.null}


def rank_latents(
    sae: SAE, compared: Compared, hook: str, config: RankingConfig, progress: bool = False
) -> FeatureRanking:
    """Rank an SAE's latents by a change between two models on the same prompts, in one pass over the activations.

    Args:
        sae: Encodes all models' activations; usually trained on the base's.
        compared: The two models' activations, and those of controls.
        hook: Hook point of the activations.
        config: Method, positions, replicates, and which latents are tested.
        progress: Show a progress bar.

    Raises:
        UserError: if the stores hold different tokens or another order, the SAE's d_model does not fit, or fewer than
            two prompts have tokens at the chosen positions.
    """
    stores = compared.stores()
    tested = ("corrupted", "benign") if compared.benign is not None else ("corrupted",)
    changes = {model: _Changes(sae.cfg.d_sae, sae.cfg.d_in, config) for model in tested}
    further = {name: _Mean.of(sae.cfg.d_sae) for name in compared.null}
    for block in prompt_blocks(sae, stores, hook, config.positions, _COMPARED, progress):
        for model, change in changes.items():
            change.add(block.ids, block.means["base"], block.means[model])
            for place, sums in block.sums.items():
                change.add_sums(place, sums["base"], sums[model])
        for name, mean in further.items():
            _add_shift(mean, block.means["base"], block.means[name])
    found = changes["corrupted"]
    _require_prompts(found, compared.base, config.positions)
    columns = {"latent": np.arange(sae.cfg.d_sae), **found.columns(sae)}
    columns |= _benign_columns(columns["shift"], changes.get("benign"), further)
    if config.method not in columns:
        raise UserError(
            f"No prompt has the positions that {config.method} averages; choose another method, or prompts with them."
        )
    about = {"ranking": config.model_dump(), "hook": hook, "latents": sae.cfg.d_sae}
    return FeatureRanking(_ranked(pd.DataFrame(columns), config.method), about | _read(found, stores, columns))


def _read(found: "_Changes", stores: Mapping[str, ActivationSource], columns: Collection[str]) -> dict[str, Any]:
    """What a ranking's config says of the data and of the columns."""
    return {
        "columns": {name: method.meaning for name, method in METHODS.items() if name in columns},
        "null": [model for model in stores if model not in ("base", "corrupted")] if "null_low" in columns else [],
        "prompts": found.differences.count,
        "tokens": found.tokens,
        "tokens_hash": stores["base"].tokens_hash,
        "activations": {model: dict(store.config) for model, store in stores.items()},
    }


def _benign_columns(
    shift: Float64[np.ndarray, "latent"], control: "_Changes | None", further: Mapping[str, "_Mean"]
) -> dict[str, Shaped[np.ndarray, "latent"]]:
    """The negative control's columns, and with further benign fine-tunes the null's."""
    columns: dict[str, np.ndarray] = {}
    shifts = [mean.value for mean in further.values()]
    if control is not None:
        found = control.shifts()
        columns |= {f"{name}_benign": found[name] for name in ("shift", "low", "high", "q")}
        columns["shift_difference"] = shift - found["shift"]
        shifts.append(found["shift"])
    return columns | (_null_columns(shift, np.stack(shifts)) if further else {})


def _null_columns(
    shift: Float64[np.ndarray, "latent"], benign: Float64[np.ndarray, "fine_tune latent"]
) -> dict[str, Shaped[np.ndarray, "latent"]]:
    """Where the shifts of benign fine-tunes lie, and which shift lies beyond (range and deviation are our choice).

    If a fine-tune differed from n benign ones in its seed only, it would move a latent farther than all of them with
    probability 1 / (n + 1): compare the share of latents in `exceeds_null` with that.
    """
    return {
        "null_low": benign.min(axis=0),
        "null_high": benign.max(axis=0),
        "null_sd": benign.std(axis=0, ddof=1) if len(benign) > 1 else np.full(len(shift), np.nan),
        "exceeds_null": np.abs(shift) > np.abs(benign).max(axis=0),
    }


@dataclass
class _Mean:
    """A mean over prompts that stream by."""

    total: Float64[Tensor, "width"]
    prompts: int = 0

    @classmethod
    def of(cls, width: int) -> "_Mean":
        return cls(torch.zeros(width, dtype=torch.float64))

    def add(self, total: Float64[Tensor, "width"], prompts: int) -> None:
        self.total += total.cpu()
        self.prompts += prompts

    @property
    def value(self) -> Float64[np.ndarray, "width"]:
        return (self.total / self.prompts).numpy()


# What is compared with the base, by its name in the table.
_MODELS = {"base": "base", "other": "corrupted"}


@dataclass
class _Known:
    """See `diffing.ranking.methods.Change`."""

    shift: Float64[np.ndarray, "latent"]
    shift_at: Mapping[Positions, Float64[np.ndarray, "latent"]]
    frequency: Mapping[str, Float64[np.ndarray, "latent"]]
    maximum: Mapping[str, Float64[np.ndarray, "latent"]]
    difference: Float64[Tensor, "d_model"]
    encoder: Float64[Tensor, "d_model latent"]
    decoder: Float64[Tensor, "latent d_model"]


class _Changes:
    """Everything that is accumulated between the base and one other model."""

    def __init__(self, latents: int, d_model: int, config: RankingConfig) -> None:
        self.config = config
        self.tokens = 0
        self.differences = Moments(latents)
        self._further: dict[Positions, _Mean] = {place: _Mean.of(latents) for place in _COMPARED}
        self._replicates = Replicates(config.replicates, latents, config.seed)
        self._activity = {model: _Mean.of(latents) for model in ("base", "other")}
        self._activation = _Mean.of(d_model)
        self._active = {model: torch.zeros(latents, dtype=torch.int64) for model in ("base", "other")}
        self._maximum = {model: torch.zeros(latents) for model in ("base", "other")}
        self._prompts_active = torch.zeros(latents, dtype=torch.int64)

    def add_sums(self, place: Positions, base: PositionSums, other: PositionSums) -> None:
        """Some prompts at positions of which only the mean shift is wanted."""
        self._further[place].add(other.activity - base.activity, base.prompts)

    def add(self, ids: tuple[str, ...], base: PromptMeans, other: PromptMeans) -> None:
        """Some prompts at the config's positions; those without such positions are left out."""
        used = base.rows > 0
        pair = {"base": base.activity[used].cpu(), "other": other.activity[used].cpu()}
        differences = pair["other"] - pair["base"]
        self.differences.add(differences)
        self._replicates.add([name for name, use in zip(ids, used.tolist(), strict=True) if use], differences)
        self._activation.add((other.activation - base.activation)[used].sum(0), len(differences))
        self._prompts_active += ((pair["base"] > 0) | (pair["other"] > 0)).sum(0)
        self.tokens += int(base.rows.sum())
        for model, means in (("base", base), ("other", other)):
            self._activity[model].add(pair[model].sum(0), len(differences))
            self._active[model] += means.active.cpu()
            self._maximum[model] = torch.maximum(self._maximum[model], means.maximum.float().cpu())

    def shifts(self) -> dict[str, Float64[np.ndarray, "latent"]]:
        """Shift, interval and test of every latent."""
        low, high = percentile_ends(self._replicates.bootstrap(), self.config.confidence)
        t, p = self.differences.paired_t()
        p = np.where(self._prompts_active.numpy() >= self.config.min_prompts, p, np.nan)
        shift = self.differences.mean.numpy()
        return {"shift": shift, "low": low, "high": high, "t": t, "p": p, "q": benjamini_hochberg(p)}

    def columns(self, sae: SAE) -> dict[str, Float64[np.ndarray, "latent"]]:
        """The table's columns, by latent."""
        found = self.shifts()
        observed, screened = found["shift"] * self.differences.count, self._screened(found["t"], found["p"])
        found["p_sign_flip"] = sign_flip_p(observed, self._replicates.sign_flips(), screened)
        found["stability"] = stability(self._replicates.bootstrap(), self.config.stable_top)
        frequency = {model: counts.double().numpy() / max(self.tokens, 1) for model, counts in self._active.items()}
        for model, name in _MODELS.items():
            found[f"mean_{name}"] = self._activity[model].value
            found[f"frequency_{name}"] = frequency[model]
            found[f"max_{name}"] = self._maximum[model].double().numpy()
        return found | self._methods(sae, found["shift"], frequency)

    @torch.no_grad()
    def _methods(
        self, sae: SAE, shift: Float64[np.ndarray, "latent"], frequency: Mapping[str, Float64[np.ndarray, "latent"]]
    ) -> dict[str, Float64[np.ndarray, "latent"]]:
        """Every method's column, by latent."""
        maximum = {name: self._maximum[model].double().numpy() for model, name in _MODELS.items()}
        known = _Known(
            shift,
            {place: mean.value for place, mean in self._further.items() if mean.prompts},
            {name: frequency[model] for model, name in _MODELS.items()},
            maximum,
            torch.from_numpy(self._activation.value).to(sae.W_dec.device),
            sae.W_enc.double(),
            unit_rows(sae.W_dec.double()),
        )
        found = {name: method.compute(known) for name, method in METHODS.items()}
        return {name: values for name, values in found.items() if values is not None}

    def _screened(
        self, t: Float64[np.ndarray, "latent"], p: Float64[np.ndarray, "latent"]
    ) -> Int[np.ndarray, "screened"]:
        """The tested latents that are first by |t|."""
        order = np.argsort(-np.where(np.isnan(p), -1.0, np.abs(t)), kind="stable")
        return order[: min(self.config.permuted, int((~np.isnan(p)).sum()))]


def _add_shift(mean: _Mean, base: PromptMeans, other: PromptMeans) -> None:
    """Adds the shifts of some prompts at the config's positions; those without such positions are left out."""
    used = base.rows > 0
    shifts = (other.activity - base.activity)[used]
    mean.add(shifts.sum(0), len(shifts))


def _require_prompts(found: _Changes, base: ActivationSource, positions: Positions) -> None:
    if found.differences.count < 2:
        raise UserError(
            f"{found.differences.count} of {len(base.prompt_ids)} prompts have tokens at the positions '{positions}', "
            "a ranking needs at least 2; choose other positions, or harvest prompts that have them."
        )


def _ranked(table: pd.DataFrame, method: str) -> pd.DataFrame:
    # A stable sort: latents of equal size stand in order of their index.
    order = np.argsort(-table[method].abs().to_numpy(), kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    table.insert(1, "rank", np.arange(1, len(table) + 1))
    return table
