"""Which latents a steered latent drags along: the finding as an artefact, of a run or of any SAE and store.

sae-diff interference --sae runs/quickstart/sae --store runs/quickstart/activations/base/ranking --latent 443
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from activations.artefact import open_folder
from activations.device import require_device
from activations.store import ActivationStore
from diffing.positions import Positions
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.interference import MOVED_FROM
from diffing.ranking.interference_table import EXPECTED, Interference, measure_interference
from sae.storage import load_sae, own_hook

SHOWN = ("change", "cosine", "overlap", "active_rows", "co_active_rows", "expected_rows")


def interference_of_store(
    sae: str,
    folder: Path,
    latent: int,
    strength: float,
    hook: str | None = None,
    positions: Positions = "prompt",
    moved_from: float = MOVED_FROM,
    out: Path | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
) -> Interference:
    """The interference of a latent of any SAE in any store of activations.

    Args:
        sae: What `load_sae` takes.
        folder: Of the store.
        latent: The latent that is added.
        strength: How much of it, in mean residual norms of the store's prompt tokens; negative to subtract.
        hook: Hook point; None: the one that the SAE names.
        positions: Positions that are averaged within each prompt, and whose rows are counted.
        moved_from: Smallest change that counts as moved, as a share (0-1) of the largest of any latent.
        out: Folder for the result; None: nothing is written.
        device: Where activations are encoded.
        overwrite: Replaces what `out` holds.
        progress: Shows bars.

    Raises:
        UserError: if the SAE names no hook, `out` is in use, or as `load_sae`, `ActivationStore.load` and
            `measure_interference` do.
    """
    require_device(device)
    loaded = load_sae(sae, device)
    store = ActivationStore.load(folder)
    if out is not None:
        open_folder(out, overwrite)
    point = hook or own_hook(loaded, sae)
    norm = residual_norm(store, point)
    found = measure_interference(loaded, store, point, latent, strength, positions, norm, moved_from, progress)
    if out is not None:
        found.save(out, {"activations": folder}, overwrite)
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
