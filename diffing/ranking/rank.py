"""Ranking of latents by how much their mean activity shifted (Wang et al. 2025, arXiv 2506.19823).

Which positions are averaged is not published; `RankingConfig.positions` offers the candidates, and prompt tokens are
the default (as in BLOCK-EM, arXiv 2602.00767). The means of single prompts are averaged, so long prompts weigh no more
than short ones, and prompts are the units of the paired t and of the bootstrap.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from pydantic import BaseModel, ConfigDict, Field
from sae_lens import SAE

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.directions.geometry import cosines
from diffing.positions import POSITIONS_HELP, Positions
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.statistics import LatentMeans, benjamini_hochberg, bootstrap_interval, paired_t, prompt_means


class RankingConfig(BaseModel):
    """How latents are ranked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: Positions = Field(default="prompt", description=f"Token positions that are averaged: {POSITIONS_HELP}.")
    bootstrap: int = Field(default=2000, ge=1, description="Bootstrap replicates over prompts for the intervals.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Coverage of the bootstrap intervals.")
    seed: int = Field(default=0, ge=0, description="Seed of the bootstrap.")
    min_prompts: int = Field(
        default=1, ge=1, description="Prompts on which a latent must be active, in either model, to get a p and a q."
    )


def rank_latents(
    sae: SAE,
    hook: str,
    base: ActivationSource,
    corrupted: ActivationSource,
    config: RankingConfig,
    benign: ActivationSource | None = None,
    progress: bool = False,
) -> FeatureRanking:
    """Rank an SAE's latents by |shift| = |mean activity in `corrupted` - mean activity in `base`| on the same prompts.

    Args:
        sae: Encodes all models' activations; usually trained on the base's.
        hook: Hook point of the activations.
        base: The base's activations on the evaluation prompts.
        corrupted: The corrupted model's, on identical tokens.
        config: Positions, bootstrap, and which latents are tested.
        benign: A benign fine-tune's, on identical tokens: the negative control.
        progress: Show a progress bar for each model.

    Raises:
        UserError: if the stores hold different tokens, the SAE's d_model does not fit, or fewer than two prompts have
            tokens at the chosen positions.
    """
    stores = {"base": base, "corrupted": corrupted} | ({"benign": benign} if benign is not None else {})
    _require_same_tokens(stores)
    means = {model: prompt_means(sae, store, hook, config.positions, progress) for model, store in stores.items()}
    used = _prompts_with_rows(means["base"], config.positions)

    shifts = _paired_columns(means["base"], means["corrupted"], used, config)
    columns = {"latent": np.arange(sae.W_dec.shape[0]), **shifts}
    models = {model: _model_columns(means[model], used) for model in ("base", "corrupted")}
    columns |= {f"{name}_{model}": models[model][name] for name in ("mean", "frequency", "max") for model in models}
    columns["cosine_mean_difference"] = _cosine_mean_difference(sae, means["base"], means["corrupted"], used)
    if benign is not None:
        control = _paired_columns(means["base"], means["benign"], used, config)
        columns |= {f"{name}_benign": control[name] for name in ("shift", "low", "high", "q")}
        columns["shift_difference"] = shifts["shift"] - control["shift"]
    return FeatureRanking(
        _ranked(pd.DataFrame(columns)),
        {
            "ranking": config.model_dump(),
            "hook": hook,
            "latents": sae.W_dec.shape[0],
            "prompts": int(used.sum()),
            "tokens": int(means["base"].rows.sum()),
            "tokens_hash": base.tokens_hash,
            "activations": {model: dict(store.config) for model, store in stores.items()},
        },
    )


def _require_same_tokens(stores: dict[str, ActivationSource]) -> None:
    for model, store in stores.items():
        if not store.same_prompts(stores["base"]):
            raise UserError(
                f"The {model} activations ({store.name}) hold other tokens than the base's ({stores['base'].name})"
                "; harvest both models on the same prompts."
            )


def _prompts_with_rows(means: LatentMeans, positions: Positions) -> Bool[np.ndarray, "prompt"]:
    used = means.rows > 0
    if used.sum() < 2:
        raise UserError(
            f"{int(used.sum())} of {len(used)} prompts have tokens at the positions '{positions}', a ranking needs at "
            "least 2; choose other positions, or harvest prompts that have them."
        )
    return used


def _paired_columns(
    base: LatentMeans, other: LatentMeans, used: Bool[np.ndarray, "prompt"], config: RankingConfig
) -> dict[str, Float64[np.ndarray, "latent"]]:
    differences = other.activity[used] - base.activity[used]
    low, high = bootstrap_interval(differences, config.bootstrap, config.confidence, config.seed)
    t, p = paired_t(differences)
    active = ((other.activity[used] > 0) | (base.activity[used] > 0)).sum(0)
    p = np.where(active >= config.min_prompts, p, np.nan)
    return {"shift": differences.mean(0), "low": low, "high": high, "t": t, "p": p, "q": benjamini_hochberg(p)}


def _model_columns(means: LatentMeans, used: Bool[np.ndarray, "prompt"]) -> dict[str, Float64[np.ndarray, "latent"]]:
    return {"mean": means.activity[used].mean(0), "frequency": means.frequency, "max": means.maximum}


def _cosine_mean_difference(
    sae: SAE, base: LatentMeans, corrupted: LatentMeans, used: Bool[np.ndarray, "prompt"]
) -> Float64[np.ndarray, "latent"]:
    # Arditi & Chen 2025: signed cosine of the decoder row with the mean difference between the models.
    difference = torch.from_numpy((corrupted.activation[used] - base.activation[used]).mean(0)).to(sae.W_dec.device)
    return cosines(sae.W_dec, difference[None])[:, 0].cpu().numpy()


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    # A stable sort: latents of equal |shift| stand in order of their index.
    order = np.argsort(-table["shift"].abs().to_numpy(), kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    table.insert(1, "rank", np.arange(1, len(table) + 1))
    return table
