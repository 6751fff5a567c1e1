"""Which latents a steered latent drags along: the finding as an artefact, of a run or of any SAE and store.

sae-diff interference --sae runs/quickstart/sae --store runs/quickstart/activations/base/ranking --latent 443
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sae_lens import SAE

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.device import require_device
from activations.errors import UserError
from activations.source import ActivationSource
from activations.store import ActivationStore
from diffing.positions import Positions
from diffing.ranking.config import MOVED_FROM, InterferenceConfig
from diffing.ranking.interference import interference
from diffing.ranking.statistics import residual_norm
from sae.storage import load_sae, own_hook

KIND = "interference"
TABLE = "interference.parquet"
# Fewer common rows than this may be missing by chance: with 3 expected, 5% of independent pairs would have none.
EXPECTED = 3.0
SHOWN = ("change", "cosine", "overlap", "active_rows", "co_active_rows", "expected_rows")


@dataclass(frozen=True)
class Interference:
    """What adding one latent does to the others.

    Attributes:
        table: One row for each latent, largest change first (see `diffing.ranking.interference`).
        config: How it was made: `latent`, `strength`, `residual_norm`, `hook`, `positions`, `moved_from` and
            `tokens_hash`.
    """

    table: pd.DataFrame
    config: Mapping[str, Any]

    @property
    def latent(self) -> int:
        """The latent that is added."""
        return int(self.config["latent"])

    @property
    def strength(self) -> float:
        """How much of it, in mean residual norms."""
        return float(self.config["strength"])

    @property
    def moved(self) -> pd.DataFrame:
        """Other latents that move although the data never show them together, largest change first."""
        return cast(pd.DataFrame, self.table[self.table["moved_never_co_active"]]).reset_index(drop=True)

    def counts(self) -> dict[str, int]:
        """Number of other latents that move; of those never co-active; of those again that should have been by chance.

        The last: at least `EXPECTED` common rows were expected if the two latents were independent.
        """
        never = self.moved
        return {
            "moved": int(np.count_nonzero(self.table["moved"])),
            "never_co_active": len(never),
            "never_though_expected": int(np.count_nonzero(never["expected_rows"] >= EXPECTED)),
        }

    def save(self, folder: Path, parents: Mapping[str, Path] | None = None, overwrite: bool = False) -> None:
        """Writes the artefact folder.

        Raises:
            UserError: if the folder holds a finished artefact and `overwrite` is false.
        """
        open_folder(folder, overwrite)
        temporary = folder / f".{TABLE}.tmp"
        self.table.to_parquet(temporary, index=False)
        publish(temporary, folder / TABLE)
        finish_artefact(folder, {**self.config, "kind": KIND}, parents)

    @classmethod
    def load(cls, folder: Path) -> "Interference":
        """Reads the artefact.

        Raises:
            UserError: if the folder is missing, unfinished, damaged, or of another kind.
        """
        config = read_config(folder, KIND)
        try:
            table = pd.read_parquet(folder / TABLE)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UserError(f"{folder / TABLE} cannot be read ({error}); measure the interference again.") from error
        return cls(table, {key: value for key, value in config.items() if key != "kind"})


def measure_interference(
    sae: SAE,
    store: ActivationSource,
    hook: str,
    latent: int,
    strength: float,
    positions: Positions,
    norm: float,
    moved_from: float = MOVED_FROM,
    progress: bool = False,
) -> Interference:
    """Adds a latent to a model's activations; strengths are in units of `norm`, a mean residual norm.

    Raises:
        UserError: as `interference` does.
    """
    config = InterferenceConfig(latent=latent, strength=strength, positions=positions, moved_from=moved_from)
    table = interference(sae, store, hook, norm, config, progress)
    made = {"latent": latent, "strength": strength, "residual_norm": norm, "hook": hook, "positions": positions}
    return Interference(table, {**made, "moved_from": moved_from, "tokens_hash": store.tokens_hash})


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
