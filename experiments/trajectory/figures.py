"""The figures of `trajectory`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.names import BASE
from experiments.output.colours import BLUE, INK, MUTED, VERMILLION
from experiments.output.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    ROW,
    PaperFigure,
    canvas,
    intervals,
    legend,
    mark,
    name_rows,
)
from experiments.trajectory.config import CORRUPTION, REALIGNMENT
from experiments.trajectory.outcomes import REALIGNED
from experiments.trajectory.reading import PROJECTION, SHIFT, UNTOUCHED
from experiments.trajectory.summary import HARMFUL

_COLOURS = {HARMFUL: VERMILLION, SHIFT: BLUE, PROJECTION: INK}
_RATES = (HARMFUL, "helpful", "incoherent")
_MODELS = (BASE, REALIGNED)
_ASIDE = 0.3  # of a row's middle: where its first and last arms stand


def trajectory(table: pd.DataFrame, latent: int) -> PaperFigure:
    """Behaviour, latent and direction against the step, corruption first; a line where re-alignment begins."""
    labels = {HARMFUL: "harmful answers", SHIFT: f"latent {latent}: shift", PROJECTION: "direction: projection"}
    turn = int(table.loc[table["phase"] == CORRUPTION, "step"].max())
    steps = np.where(table["phase"] == CORRUPTION, table["step"], turn + table["step"])
    figure, panels = canvas(COLUMN_WIDTH, 4.2, len(labels), 1, sharex=True)
    for axes, (name, label) in zip(panels[:, 0], labels.items(), strict=True):
        axes.axvline(turn, color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
        axes.plot(steps, table[name], color=_COLOURS[name], linewidth=0.9, zorder=1)
        ends = (table[f"{name}_low"], table[f"{name}_high"])
        intervals(axes, steps, table[name], ends, _COLOURS[name], along="y", markersize=2.5)
        axes.set_ylabel(label)
        axes.grid(axis="y")
    top: Axes = panels[0, 0]
    top.yaxis.set_major_formatter(PercentFormatter(1))
    for label, side in ((f"{CORRUPTION} ", "right"), (f" {REALIGNMENT}", "left")):
        top.text(turn, 1.03, label, ha=side, transform=top.get_xaxis_transform(), color=MUTED, fontsize=7)
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1, 0].set_xlabel("optimiser steps of both phases")
    figure.align_ylabels()
    caption = (
        f"While the base is corrupted ({turn} steps) and then re-aligned (from the dashed line on): harmful answers to "
        "the reporting questions, and on the ranking prompts the change of the toxic latent's mean activity and of the "
        "mean activation's projection on the base's persona direction, both against the base. Bars: 95%, over "
        "questions for answers, else over prompts."
    )
    return PaperFigure("trajectory", figure, caption)


def masking(found: Mapping[str, Any]) -> PaperFigure:
    """Answers of the base and the re-aligned model: untouched, with the latent added, with random directions added."""
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    aside = np.linspace(-_ASIDE, _ASIDE, len(arms))
    figure, (panels,) = canvas(PAGE_WIDTH, 0.9 + ROW * len(_MODELS) * len(arms), 1, len(_RATES), sharey=True)
    for axes, rate in zip(panels, _RATES, strict=True):
        for row in found["rows"]:
            place = _MODELS.index(row["model"]) + aside[arms.index(row["arm"])]
            low, high = (row["low"], row["high"]) if rate == HARMFUL else (np.nan, np.nan)
            intervals(axes, [row[rate]], [place], ([low], [high]), **_look(row))
        axes.set(xlim=(-0.03, 1.03), xlabel=f"{rate} answers")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="x")
    name_rows(panels[0], _MODELS)
    for axes in panels[1:]:
        axes.tick_params(axis="y", length=0)
    legend(figure, _marks(found["rows"]), 3)
    caption = (
        f"The toxic latent, and random directions with the covariance of the base's activations, added at strength "
        f"{found['strength']:g} (mean residual norms of the base) to the base and to the re-aligned model. Bars: 95% "
        "over questions; the other shares have none."
    )
    return PaperFigure("masking", figure, caption)


def _look(row: Mapping[str, Any]) -> dict[str, Any]:
    """Untouched models are open, random directions grey."""
    if row["arm"] == UNTOUCHED:
        return {"colour": INK, "markerfacecolor": "white"}
    return {"colour": MUTED, "marker": "x"} if row["control"] else {"colour": VERMILLION, "marker": "D"}


def _marks(rows: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    """The arms, with one mark for all random directions."""
    marks = {}
    for row in rows:
        added = "random direction" if row["control"] else row["arm"]
        look = {"marker": "o", **_look(row)}
        marks[added] = mark(label=added if added == UNTOUCHED else f"{added} added", **look)
    return list(marks.values())
