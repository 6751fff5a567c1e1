"""The figures of the monitor. Every interval is 95%."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffing.tables import where
from experiments.monitor.screening_scores import RANDOM, SCREENINGS
from experiments.output.colours import BAND, BLUE, INK, MUTED, PALETTE, VERMILLION
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

_BOTH = "both"
# Poles of the prompts: colour, mark, and how far below the row's middle they are drawn next to one another.
_POLES = {_BOTH: (INK, "o", -0.22), "high": (VERMILLION, "^", 0.06), "low": (BLUE, "v", 0.27)}
_SMALL = 5  # small panels in a row


def figures(tables: Mapping[str, pd.DataFrame]) -> list[PaperFigure]:
    """Of all parts that there are.

    Args:
        tables: "prompts" and "before"; with fine-tunes "members" and "shifts", with data the screening's.
    """
    drawn = [correlations_before(tables["before"]), *before_points(tables["prompts"], tables["before"])]
    if "shifts" in tables:
        fine_tunes = len(set(tables["members"]["model"]))
        drawn.append(correlations_of_shifts(tables["shifts"], fine_tunes))
        drawn += shift_points(tables["members"], tables["shifts"])
    if screenings := [tables[name] for name in SCREENINGS if name in tables]:
        drawn += [screening_aucs(screenings), screening_recall(screenings[0])]
    return drawn


def correlations_before(before: pd.DataFrame) -> PaperFigure:
    """Pearson's r of every trait over the tested prompts: of both poles, and within each."""
    figure = _correlations(
        {f"{model}, {whose} direction": rows for model, whose, rows in _by_direction(before)}, list(_POLES)
    )
    caption = (
        "Before the answer: Pearson's r between the projection of the last prompt token on a trait's direction and the "
        "mean trait score of the answers, over prompts whose questions the direction did not see; over both poles, and "
        "within each. Grey: 95% of random directions stay in it (both poles)."
    )
    return PaperFigure("before", figure, caption)


def correlations_of_shifts(shifts: pd.DataFrame, fine_tunes: int) -> PaperFigure:
    """Pearson's r of every trait over all fine-tunes."""
    groups = shifts.assign(pole=_BOTH).groupby("positions", sort=False)
    figure = _correlations({str(positions): rows for positions, rows in groups}, [_BOTH])
    caption = (
        f"Shift against change in behaviour over {fine_tunes} fine-tunes: Pearson's r between the mean shift along a "
        "trait's direction and the change of the mean trait score of the answers. Grey: 95% of random directions stay "
        "in it."
    )
    return PaperFigure("shifts", figure, caption)


def _correlations(panels: Mapping[str, pd.DataFrame], poles: Sequence[str]) -> Figure:
    names = list(dict.fromkeys(trait for rows in panels.values() for trait in rows["trait"]))
    height = 1.0 + (1.6 if len(poles) > 1 else 1.0) * ROW * len(names)
    figure, (row,) = canvas(PAGE_WIDTH, height, 1, len(panels), sharey=True)
    for axes, (title, rows) in zip(row, panels.items(), strict=True):
        axes.set_title(title)
        for pole in poles:
            here = where(rows, rows["pole"] == pole).set_index("trait").reindex(names)
            colour, marker, below = _POLES[pole]
            if pole == _BOTH:
                null = here["random_high"]
                axes.barh(range(len(names)), 2 * null, left=-null, height=0.8, color=BAND, zorder=1)
            size = 3.5 if pole == _BOTH else 2.5
            places = np.arange(len(names)) + (below if len(poles) > 1 else 0)
            intervals(axes, here["r"], places, (here["low"], here["high"]), colour, marker=marker, markersize=size)
        axes.axvline(0, color=MUTED, linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(-1.03, 1.03), xlabel="Pearson's r")
    name_rows(row[0], names)
    null = Patch(color=BAND, label="random directions")
    labels = {_BOTH: "r" if len(poles) == 1 else "both poles", "high": "high pole", "low": "low pole"}
    legend(figure, [*(mark(*_POLES[pole][:2], labels[pole]) for pole in poles), null])
    return figure


def _by_direction(table: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Model, whose directions, and their rows."""
    pairs = table[["model", "direction"]].drop_duplicates().itertuples(index=False)
    rows = [(m, d, where(table, (table["model"] == m) & (table["direction"] == d))) for m, d in pairs]
    return [(str(model), str(whose), here) for model, whose, here in rows]


def before_points(prompts: pd.DataFrame, before: pd.DataFrame) -> list[PaperFigure]:
    """Projection and score of every tested prompt, a panel a trait; a figure a model and direction."""
    figures = []
    both = where(before, before["pole"] == _BOTH)
    for model, whose, rows in _by_direction(prompts):
        found = where(both, (both["model"] == model) & (both["direction"] == whose))
        points = rows.assign(x=rows["projection"], y=rows["score"], colour=[_POLES[pole][0] for pole in rows["pole"]])
        labels = (
            "projection of the last prompt token (activation units)",
            "mean trait score of the answers (0 to 100)",
        )
        figure = _trait_panels(points, found, *labels)
        legend(figure, [mark(_POLES[pole][0], "o", f"{pole} pole") for pole in ("high", "low")])
        caption = (
            f"Before the answer, prompt by prompt: {model}, {whose} direction. Above each panel: Pearson's r over the "
            "prompts of both poles, with its 95% interval."
        )
        name = f"prompts-{model}-{whose}".removesuffix("'s")
        figures.append(PaperFigure(name, figure, caption))
    return figures


def shift_points(members: pd.DataFrame, shifts: pd.DataFrame) -> list[PaperFigure]:
    """Shift and change of every fine-tune, a panel a trait; a figure a kind of positions."""
    figures = []
    for positions, rows in members.groupby("positions", sort=False):
        points = rows.assign(x=rows["shift"], y=rows["change"], colour=BLUE)
        labels = ("mean shift along the direction (activation units)", "change of the mean trait score (of 100)")
        figure = _trait_panels(points, where(shifts, shifts["positions"] == positions), *labels)
        caption = (
            f"Shift against change, fine-tune by fine-tune ({positions}). Above each panel: Pearson's r over the "
            "fine-tunes, with its 95% interval."
        )
        figures.append(PaperFigure(f"fine-tunes-{positions}", figure, caption))
    return figures


def _trait_panels(points: pd.DataFrame, correlations: pd.DataFrame, xlabel: str, ylabel: str) -> Figure:
    """A small scatter a trait, with its correlation above it.

    Args:
        points: Columns "trait", "x", "y" and "colour".
        correlations: One row a trait: "r", "low" and "high".
        xlabel, ylabel: Of all panels.
    """
    by_trait = {row["trait"]: row for row in correlations.to_dict("records")}
    columns = min(_SMALL, len(by_trait))
    rows = ceil(len(by_trait) / columns)
    width = max(COLUMN_WIDTH, PAGE_WIDTH * columns / _SMALL)
    figure, panels = canvas(width, 0.9 + 1.35 * rows, rows, columns, sharey=True)
    for axes, (trait, found) in zip(panels.flat, by_trait.items(), strict=False):
        here = where(points, points["trait"] == trait)
        axes.scatter(here["x"], here["y"], s=7, c=here["colour"], alpha=0.7, linewidth=0)
        axes.set_title(f"{trait}\n{_correlation(found)}", fontsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    for axes in panels.flat[len(by_trait) :]:
        axes.remove()
    figure.supxlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    return figure


def _correlation(row: Mapping[Any, Any]) -> str:
    """r and interval in words; nothing where a score does not vary."""
    known = f"{row['r']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")
    return known if np.isfinite(row["r"]) else ""


def screening_aucs(tables: Sequence[pd.DataFrame]) -> PaperFigure:
    """AUC of every score in every mixture, a panel a score.

    Args:
        tables: "screening" at each hook.
    """
    mixtures = list(dict.fromkeys(tables[0]["mixture"]))
    scores = [score for score in dict.fromkeys(tables[0]["score"]) if score != RANDOM]
    aside = np.linspace(-0.15, 0.15, len(tables)) if len(tables) > 1 else [0.0]
    figure, (row,) = canvas(PAGE_WIDTH, 1.2 + 1.3 * ROW * len(mixtures), 1, len(scores), sharey=True, sharex=True)
    for axes, score in zip(row, scores, strict=True):
        axes.set_title(score.replace(", ", ",\n"), fontsize=7)
        for table, down, colour in zip(tables, aside, PALETTE, strict=False):
            _draw_aucs(axes, table, score, mixtures, down, colour)
        axes.axvline(0.5, color=MUTED, linewidth=0.6, linestyle=":")
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(-0.03, 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    name_rows(row[0], mixtures)
    figure.supxlabel("AUC: are bad samples ranked first?", fontsize=8)
    hooks = [str(table["hook"].iloc[0]) if "hook" in table else "scores" for table in tables]
    points = [mark(colour, "o", hook) for hook, colour in zip(hooks, PALETTE, strict=False)]
    legend(figure, [*points, Patch(color=BAND, label="random directions, 95%")])
    caption = (
        "Screening: how well each score ranks the bad samples of each mixture first (dotted: chance). Bars: 95%, by an "
        "interval that keeps its width at an AUC of 1. Grey: the central 95% of random directions, whose sign is free."
    )
    return PaperFigure("screening", figure, caption)


def _draw_aucs(axes: Axes, table: pd.DataFrame, score: str, mixtures: Sequence[str], down: float, colour: str) -> None:
    """One score's AUC in all mixtures, a little below each row's middle, over the random directions' band."""
    places = np.arange(len(mixtures)) + down
    null = where(table, table["score"] == RANDOM).set_index("mixture").reindex(mixtures)
    axes.barh(places, null["high"] - null["low"], left=null["low"], height=0.28, color=BAND, zorder=1)
    rows = where(table, table["score"] == score).set_index("mixture").reindex(mixtures)
    intervals(axes, rows["auc"], places, (rows["score_low"], rows["score_high"]), colour)


def screening_recall(rows: pd.DataFrame) -> PaperFigure:
    """Bad samples among the most suspect, in the first mixture of each kind, which has the fewest bad samples."""
    recalls = [str(name) for name in rows if str(name).startswith("recall_")]
    shares = [name for name in recalls if not name.endswith(("_low", "_high"))]
    mixtures = rows.drop_duplicates("good" if "good" in rows else "samples")["mixture"].tolist()
    figure, (panels,) = canvas(max(COLUMN_WIDTH, 2.3 * len(mixtures)), 2.9, 1, len(mixtures), sharey=True)
    known = where(rows, rows["score"] != RANDOM)
    scores = list(dict.fromkeys(known["score"]))
    for axes, mixture in zip(panels, mixtures, strict=True):
        here = where(known, known["mixture"] == mixture).set_index("score").reindex(scores)
        _draw_recall(axes, here, shares)
        axes.set_title(mixture)
        axes.set_xlabel("share of the data looked at")
    panels[0].set_ylabel("bad samples found")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    points = [mark(colour, "o", score) for score, colour in zip(scores, PALETTE, strict=False)]
    legend(figure, [*points, Line2D([], [], color=MUTED, linestyle=":", label="chance")], columns=3)
    caption = (
        "Screening: share of the bad samples among the most suspect, in the mixture with the fewest bad samples. Bars: "
        "95% (Wilson)."
    )
    return PaperFigure("recall", figure, caption)


def _draw_recall(axes: Axes, rows: pd.DataFrame, shares: Sequence[str]) -> None:
    """A group of points a share, one a score (row), and what chance finds."""
    aside = np.linspace(-0.32, 0.32, len(rows))
    for place, name in enumerate(shares):
        share = float(name.removeprefix("recall_"))
        axes.hlines(share, place - 0.42, place + 0.42, color=MUTED, linestyle=":", linewidth=1)
    columns = [rows[[f"{name}{end}" for name in shares]].to_numpy(float) for end in ("", "_low", "_high")]
    for down, colour, rate, low, high in zip(aside, PALETTE, *columns, strict=False):
        intervals(axes, np.arange(len(shares)) + down, rate, (low, high), colour, along="y", markersize=2.8)
    axes.set_xticks(range(len(shares)), [f"{float(name.removeprefix('recall_')):.0%}" for name in shares])
    axes.set_ylim(-0.03, 1.05)
