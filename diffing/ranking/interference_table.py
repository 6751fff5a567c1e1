"""Which latents a steered latent co-activates: the finding as an artefact."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from sae_lens import SAE

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.errors import UserError
from activations.source import ActivationSource
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.interference import interference

KIND = "interference"
TABLE = "interference.parquet"
# Fewer common rows than this may be missing by chance: with 3 expected, 5% of independent pairs would have none.
EXPECTED = 3.0


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
    sae: SAE, store: ActivationSource, hook: str, norm: float, config: InterferenceConfig, progress: bool = False
) -> Interference:
    """Adds a latent to a model's activations; strengths are in units of `norm`, a mean residual norm.

    Raises:
        UserError: as `interference` does.
    """
    table = interference(sae, store, hook, norm, config, progress)
    made = {**config.model_dump(), "residual_norm": norm, "hook": hook, "tokens_hash": store.tokens_hash}
    return Interference(table, made)
