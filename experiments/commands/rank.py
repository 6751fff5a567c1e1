"""A ranking of latents from stores of activations (`sae-diff rank`)."""

import warnings

from rich.console import Console
from rich.table import Table

from activations.artefact import open_folder
from activations.device import require_device
from activations.store import ActivationStore
from diffing import FeatureRanking
from diffing.ranking.agreement import method_agreement
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents
from experiments.commands.requests import RankRequest
from sae.fit import check_fit, fit_warning
from sae.storage import load_sae, own_hook


def rank_stores(request: RankRequest, config: RankingConfig) -> FeatureRanking:
    """Ranks the latents of an SAE and saves the ranking.

    Raises:
        UserError: if the SAE names no hook, or as `load_sae`, `ActivationStore.load` and `rank_latents` do.
    """
    require_device(request.device)
    sae = load_sae(request.sae, request.device)
    hook = request.hook or own_hook(sae, request.sae)
    folders = {"base": request.base, "corrupted": request.corrupted}
    folders |= {"benign": request.benign} if request.benign else {}
    null = {f"benign-{number}": folder for number, folder in enumerate(request.null, 1)}
    stores = {model: ActivationStore.load(folder) for model, folder in (folders | null).items()}
    if warning := fit_warning(check_fit(sae, stores["base"], hook)):
        warnings.warn(warning, stacklevel=2)
    open_folder(request.out, request.overwrite)
    further = {model: stores[model] for model in null}
    compared = Compared(stores["base"], stores["corrupted"], stores.get("benign"), further)
    ranking = rank_latents(sae, compared, hook, config, not request.quiet)
    ranking.save(request.out, folders | null, request.overwrite)
    return ranking


def print_ranking(ranking: FeatureRanking, top: int, console: Console) -> None:
    """The first latents, and how far the methods agree."""
    method = ranking.config["ranking"]["method"]
    columns = list(dict.fromkeys((method, "shift", "low", "high", "q", "p_sign_flip", "stability")))
    table = Table("rank", "latent", *columns)
    for row in ranking.top(top).to_dict("records"):
        table.add_row(str(row["rank"]), str(row["latent"]), *(f"{row[name]:.3g}" for name in columns))
    console.print(table)
    agreement = method_agreement(ranking.table, method)
    shares = [name for name in agreement.columns if name.startswith("overlap_")]
    table = Table(f"agreement of {method} with", "rank correlation", *(name.replace("_", " ") for name in shares))
    for row in agreement.to_dict("records"):
        table.add_row(row["method"], f"{row['spearman']:.2f}", *(f"{row[name]:.0%}" for name in shares))
    console.print(table)
