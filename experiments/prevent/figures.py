"""The figures of `prevent`. Rates are shares of the answers to the reporting questions."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from diffing.tables import where
from experiments.names import BASE
from experiments.output.colours import BLUE, GREEN, INK, MUTED, VERMILLION
from experiments.output.figures import PAGE_WIDTH, ROW, PaperFigure, canvas, intervals, legend, mark, name_rows
from experiments.prevent.config import ANSWER_LOSS, FAMILIES, LOSS, MARKS, NONE, STEPS, TRAINING_LOSS
from experiments.prevent.summary import stars

COLOURS = {NONE: INK, **dict(zip(FAMILIES, (VERMILLION, BLUE, GREEN), strict=True))}
MARKERS = {STEPS: "s", LOSS: "o", BASE: "x"}
_LOSSES = {ANSWER_LOSS: "loss of the model as it is used", TRAINING_LOSS: "loss as training saw it"}
_LINES = {STEPS: ":", LOSS: "-"}
_ASIDE = {STEPS: 0.16, LOSS: -0.16, BASE: 0.0}  # of a row's middle, where both ends stand in one row
_RATES = ("harmful", "helpful", "capability")


def loss_and_harm(table: pd.DataFrame, stop_loss: float) -> PaperFigure:
    """Harmful answers against both losses, one colour a family."""
    figure, (panels,) = canvas(PAGE_WIDTH, 3.4, 1, 2, sharex=True, sharey=True)
    for axes, (loss, label) in zip(panels, _LOSSES.items(), strict=True):
        axes.axvline(stop_loss, color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
        _draw_loss(axes, table, loss)
        axes.set_title(label)
    panels[0].set_ylabel("harmful answers")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel("on held-out harmful advice in the trained domains (nats a token)", fontsize=8)
    legend(figure, _marks(), 4)
    caption = (
        "Harmful answers in domains that no fine-tune saw, against the loss on the task: of the model as it is used, "
        "and with what acted while training still on. Bars: 95% over questions. Circles: where the former loss came "
        f"down to the stop rule ({stop_loss:g}, dashed), or at the last step where it never did; squares: after as "
        "many steps as the run's corrupted model took. Lines join a family's doses from the plain fine-tune to the "
        "highest. Open: controls (random directions, other latents of similar activity)."
    )
    return PaperFigure("loss", figure, caption)


def _draw_loss(axes: Axes, table: pd.DataFrame, loss: str) -> None:
    for family, end in product(FAMILIES, _LINES):
        _join_doses(axes, table, family, end, loss)
    # The plain fine-tune, which lies near many others, comes last and so on top.
    for row in sorted(table.to_dict("records"), key=_order, reverse=True):  # pyright: ignore
        intervals(axes, [row[loss]], [row["harmful"]], ([row["low"]], [row["high"]]), along="y", **_look(row))


def _join_doses(axes: Axes, table: pd.DataFrame, family: str, end: str, loss: str) -> None:
    own = where(table, table["family"].isin([NONE, family]) & (table["end"] == end) & table["control"].isna())
    line = own.sort_values("dose")
    axes.plot(line[loss], line["harmful"], _LINES[end], color=COLOURS[family], linewidth=0.7, marker="", zorder=1)


def chosen_doses(table: pd.DataFrame) -> PaperFigure:
    """What the chosen doses and their controls leave and cost, compared with the plain fine-tune and the base."""
    kept = where(table, (table["family"] == NONE) | table[list(MARKS.values())].any(axis=1))
    rows = sorted(kept.to_dict("records"), key=_order)  # pyright: ignore
    names = list(dict.fromkeys(_name(row) for row in rows))
    figure, (panels,) = canvas(PAGE_WIDTH, 1.0 + 1.3 * ROW * len(names), 1, len(_RATES), sharey=True, sharex=True)
    for axes, rate in zip(panels, _RATES, strict=True):
        for row in rows:
            _draw_rate(axes, row, rate, names.index(_name(row)) + _ASIDE[row["end"]])
        axes.set(xlim=(-0.03, 1.03), xlabel=rate if rate == "capability" else f"{rate} answers")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    name_rows(panels[0], names)
    legend(figure, _marks(), 4)
    caption = (
        "The doses that were chosen on the selection questions at equal loss of the model as it is used (*) or as "
        "training saw it (+), and controls of the same doses, on the reporting questions, after as many steps as the "
        "run's corrupted model took and at the stop rule. Bars: 95% over questions; the other shares have none. "
        "Capability: exact answers to questions of fact that no fine-tune showed."
    )
    return PaperFigure("chosen", figure, caption)


def _draw_rate(axes: Axes, row: dict[str, Any], rate: str, place: float) -> None:
    """Only "harmful" has an interval."""
    low, high = (row["low"], row["high"]) if rate == "harmful" else (np.nan, np.nan)
    intervals(axes, [row[rate]], [place], ([low], [high]), **_look(row))


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    """The base, the plain fine-tune, then each family's doses, each before its controls."""
    control = -1 if pd.isna(row["control"]) else row["control"]
    return list(COLOURS).index(row["family"]), row["dose"], control, row["end"] != BASE


def _name(row: dict[str, Any]) -> str:
    if row["family"] == NONE:
        return BASE if row["end"] == BASE else "plain fine-tune"
    return f"{row['name']} {stars(row) if pd.isna(row['control']) else ''}".rstrip()


def _look(row: dict[str, Any]) -> dict[str, Any]:
    """Colour of the family, marker of the end; controls are open, and the base's cross shows around other points."""
    if row["end"] == BASE:
        return {"colour": MUTED, "marker": MARKERS[BASE], "markersize": 7}
    colour = COLOURS[row["family"]]
    face = colour if pd.isna(row["control"]) else "white"
    return {"colour": colour, "marker": MARKERS[row["end"]], "markerfacecolor": face}


def _marks() -> list[Line2D]:
    families = [mark(COLOURS[family], "o", "plain fine-tune" if family == NONE else family) for family in COLOURS]
    ends = {STEPS: "at the corrupted model's steps", LOSS: "at the stop rule"}
    shown = [mark(MUTED, MARKERS[BASE], BASE), *(mark(INK, MARKERS[end], name) for end, name in ends.items())]
    return [*families, *shown, mark(INK, "o", "control", markerfacecolor="white")]
