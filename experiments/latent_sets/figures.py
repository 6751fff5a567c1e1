"""The figure of `latent-sets`."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from diffing.steering.arms import CONTROL_KINDS
from diffing.tables import where
from experiments.latent_sets.measure import OPERATIONS
from experiments.output.colours import BAND, PALETTE
from experiments.output.figures import PAGE_WIDTH, PaperFigure, canvas, intervals, mark


def dose_response(table: pd.DataFrame) -> PaperFigure:
    """Rates of harmful and of incoherent answers against the dose, in both models; random sets in grey."""
    figure, panels = canvas(PAGE_WIDTH, 4.8, 2, 2, sharex=True, sharey=True)
    for (row, rate), (column, role) in product(enumerate(("harmful", "incoherent")), enumerate(OPERATIONS)):
        axes, here = panels[row, column], where(table, table["model"] == role)
        for arm, look in _looks(table).items():
            _draw_arm(axes, here, arm, rate, look)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(f"{role}: {rate} answers")
    figure.supxlabel("strength (mean residual norms of the base)", fontsize=8)
    looks = {look["label"]: look for look in _looks(table).values()}
    lines = [mark(look["color"], look["marker"], name, linestyle="-") for name, look in looks.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=4)
    caption = (
        "Sets of latents, one latent and the dense direction, added to the base and subtracted from the corrupted "
        "model, on the reporting questions; bars are 95% over questions. Random sets are as large as the largest "
        "greedy set."
    )
    return PaperFigure("dose-response", figure, caption)


def _looks(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker of each arm; after the last colour the markers change. Random sets are drawn below."""
    kinds = dict(zip(table["arm"], table["kind"], strict=True))
    treated = [arm for arm, kind in kinds.items() if kind not in CONTROL_KINDS and arm != "untouched"]
    colours, markers = len(PALETTE), ("o", "s", "^", "D")
    random = {"color": BAND, "marker": "", "label": "random sets", "zorder": 1}
    looks = {arm: random for arm, kind in kinds.items() if kind in CONTROL_KINDS}
    for place, arm in enumerate(treated):
        marker = markers[place // colours % len(markers)]
        looks[arm] = {"color": PALETTE[place % colours], "marker": marker, "label": arm, "zorder": 2}
    return looks


def _draw_arm(axes: Axes, table: pd.DataFrame, arm: str, rate: str, look: Mapping[str, Any]) -> None:
    """From the untouched model on; only harmful answers have intervals."""
    rows = where(table, (table["arm"] == arm) | (table["operation"] == "none")).sort_values(by="strength")
    axes.plot(rows["strength"], rows[rate], **{**look, "marker": "", "linewidth": 0.9})
    if look["marker"]:
        low, high = (rows["low"], rows["high"]) if rate == "harmful" else (np.full(len(rows), np.nan),) * 2
        shape = {"marker": look["marker"], "markersize": 2.5}
        intervals(axes, rows["strength"], rows[rate], (low, high), look["color"], along="y", **shape)
