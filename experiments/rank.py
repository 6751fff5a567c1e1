"""A ranking of latents from stores of activations (`sae-diff rank`)."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from activations.artefact import open_folder
from activations.device import require_device
from activations.store import ActivationStore
from diffing import FeatureRanking
from diffing.ranking.agreement import method_agreement
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents
from sae.fit import check_fit, fit_warning
from sae.storage import load_sae, own_hook


def rank_stores(
    sae: str,
    folders: Mapping[str, Path],
    hook: str | None,
    config: RankingConfig,
    out: Path,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> FeatureRanking:
    """Ranks the latents of an SAE and saves the ranking.

    Args:
        sae: What `load_sae` takes.
        folders: Stores by model: "base", "corrupted" and, as a control, "benign".
        hook: Hook point; None: the one that the SAE names.
        config: Method, positions, replicates.
        out: Folder of the ranking.
        device: Where activations are encoded.
        overwrite: Replaces an earlier ranking.
        progress: Shows bars.

    Raises:
        UserError: if the SAE names no hook, or as `load_sae`, `ActivationStore.load` and `rank_latents` do.
    """
    require_device(device)
    loaded = load_sae(sae, device)
    point = hook or own_hook(loaded, sae)
    stores = {model: ActivationStore.load(folder) for model, folder in folders.items()}
    if warning := fit_warning(check_fit(loaded, stores["base"], point)):
        print(f"warning: {warning}")
    open_folder(out, overwrite)
    ranking = rank_latents(
        loaded, Compared(stores["base"], stores["corrupted"], benign=stores.get("benign")), point, config, progress
    )
    ranking.save(out, folders, overwrite)
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
