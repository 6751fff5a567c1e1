"""Which latents a steered latent co-activates: the finding as an artefact, of a run or of any SAE and store.

sae-diff interference --sae runs/quickstart/sae --store runs/quickstart/activations/base/ranking --latent 443
"""

from rich.console import Console
from rich.table import Table

from activations.artefact import open_folder
from activations.device import require_device
from activations.store import ActivationStore
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.interference_table import EXPECTED, Interference, measure_interference
from experiments.commands.requests import InterferenceRequest
from sae.storage import load_sae, own_hook

SHOWN = ("change", "cosine", "overlap", "active_rows", "co_active_rows", "expected_rows")


def interference_of_store(request: InterferenceRequest, config: InterferenceConfig) -> Interference:
    """The interference of a latent of any SAE in any store of activations.

    Raises:
        UserError: if the SAE names no hook, `out` is in use, or as `load_sae`, `ActivationStore.load` and
            `measure_interference` do.
    """
    require_device(request.device)
    sae, store = load_sae(request.sae, request.device), ActivationStore.load(request.store)
    if request.out is not None:
        open_folder(request.out, request.overwrite)
    hook = request.hook or own_hook(sae, request.sae)
    norm = residual_norm(store, hook)
    found = measure_interference(sae, store, hook, norm, config, not request.quiet)
    if request.out is not None:
        found.save(request.out, {"activations": request.store}, request.overwrite)
    return found


def print_interference(found: Interference, top: int, console: Console) -> None:
    """The latents that move although the data never show them together with the added one, and how many do."""
    table = Table("latent", *(name.replace("_", " ") for name in SHOWN))
    for row in found.moved.head(top).to_dict("records"):
        table.add_row(str(row["latent"]), *(f"{row[name]:.3g}" for name in SHOWN))
    console.print(table)
    counts = found.counts()
    console.print(
        f"latent {found.latent} added at strength {found.strength:g}: {counts['moved']} other latents move, "
        f"{counts['never_co_active']} of them are never active on a row together with it "
        f"({counts['never_though_expected']} of these with at least {EXPECTED:g} such rows expected by chance)",
        soft_wrap=True,
    )
