"""The artefact that a diff ends in: a table with one row for each latent.

A folder with `ranking.parquet` (which `pandas.read_parquet` opens by itself), `config.json` and provenance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.display import html_table
from activations.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_FILE = "ranking.parquet"
# Rows that a notebook shows.
SHOWN = 10


@dataclass(frozen=True)
class FeatureRanking:
    """Latents ranked by how much they shifted between two models.

    Attributes:
        table: One row for each latent, in rank order. Activities are in the SAE's units, averaged within prompts and
            then over prompts; frequencies are fractions of tokens.
        config: How it was made; anything that JSON holds.

    Columns of the table:
        latent, rank: Index in the SAE; 1-based place by the absolute value of the method's column (by default shift).
        shift, low, high: Mean activity in the corrupted model minus the base's; its bootstrap interval over prompts.
        t, p, q: Paired t, its two-sided p, and the Benjamini-Hochberg q (NaN for latents that were not tested).
        p_sign_flip: Permutation p of the latents that are first by |t| (post-selection), NaN for others.
        stability: How often the latent is among the first ten by |shift| when prompts are resampled.
        mean_*, frequency_*, max_*: Mean activity, fraction of tokens where active, and largest activation, by model.
        shift_<positions>, frequency_shift, max_shift, cosine_mean_difference, projection_*: Other ranking methods;
            `config["columns"]` says what each is, with its unit.
        shift_benign, low_benign, high_benign, q_benign: The same against a benign fine-tune, where there is one.
        shift_difference: shift - shift_benign.
        null_low, null_high, null_sd: Smallest and largest shift over all benign fine-tunes, and its standard deviation
            over them, where there are several.
        exceeds_null: Whether |shift| is larger than in every benign fine-tune.
        causal_induce, causal_repair, causal_ablate, causal, ...: Verdicts on the latents that were steered
            (see `verdict_table`).
        cosine_<direction>: Signed cosine of the decoder row with a persona direction, where added.
    """

    table: pd.DataFrame
    config: Mapping[str, Any]

    KIND: ClassVar[str] = "feature_ranking"

    def to_pandas(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def top(self, n: int) -> pd.DataFrame:
        """The `n` latents that shifted most, in either direction."""
        return self.table.nsmallest(n, "rank").reset_index(drop=True)

    def plot(self, n: int = 20) -> "Figure":
        """The shifts of the first `n` latents with their intervals, and those in the benign fine-tune where known."""
        from matplotlib import pyplot as plt

        table = self.top(n)
        places = np.arange(len(table))
        shift, low, high = (table[name].to_numpy(dtype=float) for name in ("shift", "low", "high"))
        figure, axes = plt.subplots(figsize=(5.5, 1 + 0.22 * len(table)), layout="constrained")
        plt.close(figure)  # it is shown by whoever gets it, and only once
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.errorbar(
            shift, places, xerr=[shift - low, high - shift], fmt="o", markersize=4, capsize=2, label="corrupted"
        )
        if "shift_benign" in table:
            axes.plot(table["shift_benign"], places, "o", markersize=4, fillstyle="none", color="0.4", label="benign")
            axes.legend(frameon=False)
        axes.set_yticks(places, table["latent"].astype(str))
        axes.invert_yaxis()
        axes.set(xlabel="shift of the mean activity (bars: bootstrap interval over prompts)", ylabel="latent")
        return figure

    def _repr_html_(self) -> str:
        method = self.config.get("ranking", {}).get("method", "shift")
        wanted = ("rank", "latent", method, "shift", "low", "high", "q", "shift_benign", "exceeds_null", "causal")
        table = self.top(SHOWN)[[name for name in dict.fromkeys(wanted) if name in self.table]]
        caption = f"FeatureRanking: {len(table)} of {len(self.table):,} latents by |{method}|"
        return html_table(caption, list(table), table.astype(object).itertuples(index=False))

    def with_columns(self, columns: Mapping[str, Shaped[np.ndarray, "latent"]]) -> "FeatureRanking":
        """A ranking with more columns; each array is indexed by latent (not by rank).

        Raises:
            ValueError: if an array does not have one value for each latent.
        """
        latents = self.table["latent"].to_numpy()
        for name, values in columns.items():
            if len(values) != len(latents):
                raise ValueError(f"Column '{name}' has {len(values)} values, the ranking {len(latents)} latents")
        added = {name: np.asarray(values)[latents] for name, values in columns.items()}
        return FeatureRanking(self.table.assign(**added), self.config)

    def joined(self, table: pd.DataFrame) -> "FeatureRanking":
        """A ranking with the columns of a table that has one row for some of the latents; others get none.

        Columns of the same names are replaced.
        """
        kept = self.table.drop(columns=[name for name in table.columns if name != "latent" and name in self.table])
        return FeatureRanking(kept.merge(table, on="latent", how="left", validate="one_to_one"), self.config)

    def save(self, folder: str | Path, parents: Mapping[str, Path] | None = None, overwrite: bool = False) -> None:
        """Write the artefact folder.

        Args:
            folder: New, or with `overwrite` that of an earlier artefact.
            parents: Folders of the artefacts that it was made from, by the name they get in its provenance.
            overwrite: Replace what the folder holds.

        Raises:
            UserError: if the folder holds a finished artefact and `overwrite` is false.
        """
        open_folder(folder := Path(folder), overwrite)
        temporary = folder / f".{TABLE_FILE}.tmp"
        self.table.to_parquet(temporary, index=False)
        publish(temporary, folder / TABLE_FILE)
        finish_artefact(folder, {**self.config, "kind": self.KIND}, parents or {})

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureRanking":
        """Read an artefact folder.

        Raises:
            UserError: if the folder is missing, unfinished, damaged, or of another kind.
        """
        folder = Path(folder)
        config = read_config(folder, cls.KIND)
        try:
            table = pd.read_parquet(folder / TABLE_FILE)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UserError(f"{folder / TABLE_FILE} cannot be read ({error}); rank the latents again.") from error
        return cls(table, {key: value for key, value in config.items() if key != "kind"})
