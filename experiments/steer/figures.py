"""The figure of `steer`."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.output.colours import BAND, MUTED, VERMILLION
from experiments.output.figures import PAGE_WIDTH, PaperFigure, canvas, intervals, legend, mark
from experiments.steer.summary import steered_rows

_PANELS = {"induce": "added to the base", "repair": "subtracted from\nthe corrupted model", "ablate": "ablated there"}
_LOOKS: dict[str, dict[str, Any]] = {
    "not causal": {"colour": MUTED, "marker": "o", "markersize": 2.5},
    "causal": {"colour": VERMILLION, "marker": "D"},
}


def effects(ranking: pd.DataFrame) -> PaperFigure:
    """Change of the harmful rate by each steered latent, by rank, over a band up to its worst control."""
    table = pd.DataFrame(steered_rows(ranking))
    figure, panels = canvas(PAGE_WIDTH, 4.0, len(_PANELS), 1, sharex=True)
    for axes, (name, label) in zip(panels[:, 0], _PANELS.items(), strict=True):
        _draw_band(axes, table, f"control_{name}")
        axes.axhline(0, color=MUTED, linewidth=0.5, zorder=1)
        effect = f"causal_{name}"
        for verdict, look in _LOOKS.items():
            here = table[[(causal is True) == (verdict == "causal") for causal in table["causal"]]]
            ends = here[f"{effect}_low"], here[f"{effect}_high"]
            intervals(axes, here["rank"], here[effect], ends, along="y", **look)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1, 0].set_xlabel("rank of the latent")
    figure.align_ylabels()
    marks = [mark(look["colour"], look["marker"], verdict) for verdict, look in _LOOKS.items()]
    legend(figure, [*marks, Patch(color=BAND, label="worst control")], 3)
    caption = (
        "Change of the rate of harmful answers to the reporting questions, positive in the direction that a cause "
        "would have, with intervals (95%) that cover all latents together. Grey: the change by the latent's worst "
        "control at the same strength, where controls were steered; ablation has none."
    )
    return PaperFigure("effects", figure, caption)


def _draw_band(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """Up to each latent's worst control; nothing where none was steered."""
    if column in table:
        controls = table[column].astype(float)
        axes.bar(table["rank"][controls.notna()], controls.dropna(), width=1.0, color=BAND, zorder=0)
