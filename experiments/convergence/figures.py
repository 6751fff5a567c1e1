"""The figures of `convergence`. Every interval is 95% over questions."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffing.directions.misalignment import CONTRASTS
from diffing.steering.choices import ABLATIONS
from diffing.steering.transfer import Reach
from diffing.tables import where
from experiments.convergence.compare import FINE_TUNES, WITH_HARMLESS, WITH_LATENT, WITH_PERSONA, WITH_WORDS
from experiments.convergence.config import FINE_TUNE, HARMLESS
from experiments.convergence.summary import RANDOM_TARGET, TRANSFER_TARGET, arms
from experiments.names import BASE, ISOTROPIC, REPORTING
from experiments.output.colours import BAND, BLUE, GREEN, INK, MUTED, ORANGE, PALETTE, PINK, VERMILLION
from experiments.output.figures import (
    PAGE_WIDTH,
    ROW,
    PaperFigure,
    block_of,
    canvas,
    colour_cells,
    intervals,
    legend,
    mark,
    name_rows,
)

# Colour and marker of what a fine-tune's direction is compared with; open: not another fine-tune's.
RELATIONS = {
    FINE_TUNES: (VERMILLION, "o"),
    WITH_HARMLESS: (BLUE, "s"),
    WITH_PERSONA: (GREEN, "^"),
    WITH_LATENT: (PINK, "v"),
    WITH_WORDS: (ORANGE, "D"),
}
_MARKERS = "osD^vP*X<>"
_RANDOM, _INCOHERENT = "random directions", "extra incoherent answers"
_LIMITS = (-1.05, 1.05)


def draw(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any], hook: str) -> list[PaperFigure]:
    """All figures.

    Args:
        tables: "cosines", "sweep" and "transfer".
        summary: What `summarise` returns.
        hook: Where single cosines are shown: the run's hook.
    """
    matrices = cosine_matrices(tables["cosines"], hook)
    return [
        *([] if matrices is None else [matrices]),
        cosine_dots(tables["cosines"], hook),
        cosines_by_layer(tables["cosines"]),
        ablation_by_layer(tables["sweep"]),
        steering_by_layer(tables["sweep"]),
        treatment_dots(summary),
        transfer_matrices(tables["transfer"], summary["treatments"]),
    ]


def cosine_matrices(cosines: pd.DataFrame, hook: str) -> PaperFigure | None:
    """Cosines between the fine-tunes, and with harmless ones, at one hook: a matrix a contrast; None without any."""
    here = where(cosines, (cosines["hook"] == hook) & cosines["relation"].isin([FINE_TUNES, WITH_HARMLESS]))
    if here.empty:
        return None
    names = list(dict.fromkeys([*here["first"], *here["second"]]))
    figure, (panels,) = canvas(PAGE_WIDTH, 2.0 + 0.24 * len(names), 1, 2, sharey=True)
    for axes, contrast in zip(panels, CONTRASTS, strict=True):
        rows = where(here, here["contrast"] == contrast)
        beyond = rows["cosine"].abs() > rows["chance"]
        colour_cells(axes, _symmetric(rows, names), _symmetric(rows.assign(cosine=beyond), names) > 0)
        axes.set_title(contrast)
    chance = ", ".join(f"{value:.2f}" for value in sorted(set(here["chance"])))
    caption = (
        f"Cosines between the fine-tunes' directions, and with those of harmless fine-tunes, at {hook}, for both "
        "contrasts. Grey numbers are no larger than what 95% of pairs of random directions with the activations' "
        f"covariance reach ({chance}). Cells without a number: not compared, or no direction. For intervals see the "
        "next figure."
    )
    return PaperFigure("cosines", figure, caption)


def cosine_dots(cosines: pd.DataFrame, hook: str) -> PaperFigure:
    """Every cosine at one hook with its interval, by what the fine-tunes are compared with."""
    here = where(cosines, cosines["hook"] == hook)
    pairs = {relation: dict.fromkeys(_pairs(where(here, here["relation"] == relation))) for relation in RELATIONS}
    rows = [(relation, pair) for relation, found in pairs.items() if found for pair in (None, *found)]
    figure, (panels,) = canvas(PAGE_WIDTH, 1.0 + ROW * len(rows), 1, 2, sharey=True, sharex=True)
    name_rows(panels[0], [relation if pair is None else pair for relation, pair in rows])
    for label, (_, pair) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if pair is None else "normal")
    places = {row: place for place, row in enumerate(rows)}
    for axes, contrast in zip(panels, CONTRASTS, strict=True):
        of_contrast = where(here, here["contrast"] == contrast)
        for relation, (colour, marker) in RELATIONS.items():
            found = where(of_contrast, of_contrast["relation"] == relation)
            at = [places[relation, pair] for pair in _pairs(found)]
            chance = found["chance"]
            axes.barh(at, 2 * chance, left=-chance, height=1, color=BAND, zorder=1)
            intervals(
                axes, found["cosine"], at, (found["low"], found["high"]), colour, marker=marker, **_face(relation)
            )
        axes.axvline(0, color=MUTED, linewidth=0.6)
        axes.set(xlim=_LIMITS, xlabel=f"cosine: {contrast}")
        axes.tick_params(axis="y", length=0)
    legend(figure, [_band()])
    caption = (
        f"Cosines of the fine-tunes' directions at {hook}, pair by pair. Bars: 95% over the selection questions, which "
        "are resampled for both directions of a pair (persona direction and toxic latent stay as they are). "
        "Resampling adds noise, so a cosine near 1 may lie at the upper end of its bar, or above. Filled: two "
        "misaligned fine-tunes; open: all other comparisons."
    )
    return PaperFigure("cosine-intervals", figure, caption)


def cosines_by_layer(cosines: pd.DataFrame) -> PaperFigure:
    """Mean cosine of each relation against the layer, bars from the least to the largest."""
    figure, (panels,) = canvas(PAGE_WIDTH, 3.0, 1, 2, sharex=True, sharey=True)
    for axes, contrast in zip(panels, CONTRASTS, strict=True):
        rows = where(cosines, cosines["contrast"] == contrast)
        chance = _mean_and_ends(where(rows, rows["relation"] == FINE_TUNES), "chance").sort_values("hook", key=_blocks)
        axes.fill_between(_blocks(chance["hook"]), -chance["high"], chance["high"], color=BAND, linewidth=0, zorder=0)
        for aside, (relation, (colour, marker)) in zip(_asides(len(RELATIONS)), RELATIONS.items(), strict=True):
            ends = _mean_and_ends(where(rows, rows["relation"] == relation), "cosine")
            _draw_line(axes, ends, colour, aside, marker=marker, **_face(relation))
        axes.axhline(0, color=MUTED, linewidth=0.6)
        axes.set_title(contrast)
        _name_blocks(axes)
    panels[0].set(ylim=_LIMITS, ylabel="cosine")
    marks = [mark(colour, marker, name, **_face(name)) for name, (colour, marker) in RELATIONS.items()]
    legend(figure, [*marks, _band()], columns=3)
    caption = (
        "Cosines by layer: means over all pairs, with bars from the least to the largest pair. Filled: two misaligned "
        "fine-tunes; open: all other comparisons. Persona direction and toxic latent are those of the run's hook. "
        "Grey: what 95% of pairs of random directions with the activations' covariance stay in."
    )
    return PaperFigure("cosines-by-layer", figure, caption)


def ablation_by_layer(sweep: pd.DataFrame) -> PaperFigure:
    """Share of EM that ablation of a fine-tune's own direction removes, and its extra incoherence."""
    here = where(sweep, (sweep["half"] == REPORTING) & (sweep["model"] != BASE))
    models = list(dict.fromkeys(here["model"]))
    kinds = list(product(ABLATIONS, (Reach.ONE, Reach.EVERYWHERE)))
    figure, panels = canvas(PAGE_WIDTH, 0.9 + 1.55 * len(kinds), len(kinds), 2, sharex=True, sharey=True)
    for (row, (operation, reach)), (column, contrast) in product(enumerate(kinds), enumerate(CONTRASTS)):
        rows = where(here, (here["operation"] == str(operation)) & (here["reach"] == str(reach)))
        axes, own = panels[row, column], where(rows, rows["contrast"] == contrast)
        _draw_controls(axes, where(rows, rows["kind"] == ISOTROPIC), "removed")
        _draw_line(axes, _mean_and_ends(own, "extra_incoherent"), INK, 0.38, marker="x", linestyle=":")
        _draw_members(axes, own, "model", models, "removed")
        axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
        axes.set_title(f"{_words(operation)}, {reach}: {contrast}", fontsize=7)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in panels[-1]:
        _name_blocks(axes)
    figure.supylabel("share", fontsize=8)
    extra = mark(INK, "x", _INCOHERENT, linestyle=":")
    legend(figure, [*_member_marks(models), extra], columns=4)
    caption = (
        "Share of EM that is removed from each fine-tune by ablating its own direction, on the reporting questions: "
        "plainly, or to the base's mean projection; at the layer, or that layer's vector at all layers. Bars: 95% over "
        "questions. Open circles: mean of random directions, from the least to the largest; they were ablated plainly "
        "and at one layer alone. Crosses: incoherent answers beyond the untouched ones, mean over fine-tunes, from the "
        "least to the largest."
    )
    return PaperFigure("ablation", figure, caption)


def steering_by_layer(sweep: pd.DataFrame) -> PaperFigure:
    """Harmful answers of the base with each fine-tune's direction added at the strength chosen for the layer."""
    here = where(sweep, (sweep["half"] == REPORTING) & (sweep["model"] == BASE))
    own = where(here, here["kind"] == FINE_TUNE)
    names = list(dict.fromkeys(own["direction"]))
    figure, (panels,) = canvas(PAGE_WIDTH, 3.0, 1, 2, sharex=True, sharey=True)
    for axes, contrast in zip(panels, CONTRASTS, strict=True):
        _draw_controls(axes, where(here, here["kind"] == ISOTROPIC), "harmful")
        _draw_members(axes, where(own, own["contrast"] == contrast), "direction", names, "harmful")
        axes.set_title(contrast)
        _name_blocks(axes)
    panels[0].set(ylim=(-0.03, 1.03), ylabel="harmful answers of the base")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, _member_marks(names), columns=4)
    caption = (
        "The base with each fine-tune's direction added, on the reporting questions; the strength was chosen for each "
        "direction and layer on the selection questions. Bars: 95% over questions. Open circles: mean of random "
        "directions at all strengths that were chosen at the layer, from the least to the largest."
    )
    return PaperFigure("steering", figure, caption)


def treatment_dots(summary: Mapping[str, Any]) -> PaperFigure:
    """What each chosen treatment removes with a model's own direction, those of others, and controls."""
    treatments = summary["treatments"]
    columns = {"removed": "EM removed", "extra_incoherent": _INCOHERENT}
    figure, (panels,) = canvas(PAGE_WIDTH, 1.1 + 3.6 * ROW * len(treatments), 1, 2, sharey=True)
    name_rows(panels[0], [_label(row) for row in treatments])
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for place, row in enumerate(treatments):
            drawn = arms(row)
            asides = _asides(len(drawn), 0.7)
            for aside, (_, found), (colour, look) in zip(asides, drawn, _arm_looks(row), strict=True):
                low, high = (found["low"], found["high"]) if column == "removed" else (np.nan, np.nan)
                intervals(axes, [found[column]], [place + aside], ([low], [high]), colour, **look)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.axvline(0, color=MUTED, linewidth=0.6, zorder=0)
    for target in (TRANSFER_TARGET, RANDOM_TARGET):
        panels[0].axvline(target, color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
    looks = zip(arms(treatments[0]), _arm_looks(treatments[0]), strict=True)
    marks = [mark(colour, label=name, **look) for (name, _), (colour, look) in looks]
    legend(figure, marks, columns=3)
    caption = (
        "Each treatment that was chosen on the selection questions, in all fine-tunes, on the reporting questions: "
        "mean over pairs of a direction and a model. Bars: 95% over questions; incoherence has none. Open: controls "
        "(directions of harmless fine-tunes, random directions). Dashed: other fine-tunes' directions are to remove "
        f"{TRANSFER_TARGET:.0%} at least, random ones less than {RANDOM_TARGET:.0%}."
    )
    return PaperFigure("treatments", figure, caption)


def _arm_looks(treatment: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Colour and look of each of `arms`; controls are open."""
    controls = [(BLUE, _MARKERS[2 + place % 6]) for place in range(len(treatment["harmless"]))]
    return [
        (INK, {"marker": "s"}),
        (VERMILLION, {"marker": "o"}),
        *((c, {"marker": m, "markerfacecolor": "white"}) for c, m in (*controls, (MUTED, "o"), (MUTED, "s"))),
    ]


def transfer_matrices(transfer: pd.DataFrame, treatments: Sequence[Mapping[str, Any]]) -> PaperFigure:
    """Share of each model's EM that each direction removes, for every chosen treatment."""
    found = [removed_by_direction(transfer, treatment) for treatment in treatments]
    rows = (len(found) + 1) // 2
    height = 1.2 + rows * (0.5 + 0.15 * max(len(cells) for cells in found))
    figure, panels = canvas(PAGE_WIDTH, height, rows, 2, sharex=True, sharey=True)
    for axes, cells, treatment in zip(panels.flat, found, treatments, strict=False):
        colour_cells(axes, cells.round(2) + 0.0, number="{:.0%}")
        axes.set_title(_label(treatment), fontsize=7)
    for axes in panels.flat[len(found) :]:
        axes.remove()
    caption = (
        "Share of EM removed in each model (across) by each direction (down), for every chosen treatment, on the "
        "reporting questions. Intervals: table below."
    )
    return PaperFigure("transfer", figure, caption)


def removed_by_direction(transfer: pd.DataFrame, treatment: Mapping[str, Any]) -> pd.DataFrame:
    """Directions down, models across; of random directions the mean."""
    rows = where(transfer, transfer["contrast"].isin([treatment["contrast"], ""]))
    for key in ("operation", "reach", "hook", "strength"):
        rows = where(rows, rows[key] == treatment[key])
    named = [
        direction if kind in (FINE_TUNE, HARMLESS) else f"{kind}, mean"
        for direction, kind in zip(rows["direction"], rows["kind"], strict=True)
    ]
    return rows.assign(direction=named).pivot_table(
        index="direction", columns="model", values="removed", aggfunc="mean", sort=False
    )


def _label(treatment: Mapping[str, Any]) -> str:
    """A treatment of `summary.json` in two short lines."""
    strength = f" {treatment['strength']:g}" if treatment["strength"] else ""
    at = f", block {block_of(treatment['hook'])}" if treatment["hook"] else ""
    return f"{_words(treatment['operation'])}{strength}: {treatment['contrast']}\n{treatment['reach']}{at}"


def _words(operation: str) -> str:
    return operation.replace("_", " ")


def _symmetric(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Unordered pairs as a matrix with 1 on its diagonal; NaN where a pair was not compared."""
    known = {*pairs["first"], *pairs["second"]}
    cells = pd.DataFrame(np.nan, index=pd.Index(names), columns=pd.Index(names))
    for name in names:
        cells.loc[name, name] = 1.0 if name in known else np.nan
    for one, other, cosine in zip(pairs["first"], pairs["second"], pairs["cosine"], strict=True):
        cells.loc[one, other] = cells.loc[other, one] = float(cosine)
    return cells


def _pairs(rows: pd.DataFrame) -> list[str]:
    """What is compared in each row; the base needs no name, as the relation says what of it."""
    pairs = zip(rows["first"], rows["second"], strict=True)
    return [one if other == BASE else f"{one} · {other}" for one, other in pairs]


def _face(relation: str) -> dict[str, Any]:
    return {} if relation == FINE_TUNES else {"markerfacecolor": "white"}


def _mean_and_ends(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean, least and largest value at each hook."""
    return rows.groupby("hook")[value].agg(value="mean", low="min", high="max").reset_index()


def _with_ends(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """A rate at each hook with its interval."""
    ends = {f"{value}_low": "low", f"{value}_high": "high", value: "value"}
    return rows.drop(columns=["low", "high"] if value != "harmful" else []).rename(columns=ends)


def _draw_line(axes: Axes, ends: pd.DataFrame, colour: str, aside: float, **options: Any) -> None:
    """A line over the layers, beside the others so that bars do not cover one another."""
    found = ends.sort_values("hook", key=_blocks)
    look = {"linestyle": "-", "linewidth": 0.8, "markersize": 3} | options
    places = _blocks(found["hook"]) + aside
    intervals(axes, places, found["value"], (found["low"], found["high"]), colour, along="y", **look)


def _blocks(hooks: Any) -> Any:
    """Numbers of the blocks of a column of hooks."""
    return hooks.map(block_of).astype(int)


def _draw_members(axes: Axes, rows: pd.DataFrame, column: str, names: Sequence[str], value: str) -> None:
    for place, (name, aside) in enumerate(zip(names, _asides(len(names)), strict=True)):
        colour, marker = _look(place)
        _draw_line(axes, _with_ends(where(rows, rows[column] == name), value), colour, aside, marker=marker)


def _draw_controls(axes: Axes, rows: pd.DataFrame, value: str) -> None:
    _draw_line(axes, _mean_and_ends(rows, value), MUTED, -0.38, markerfacecolor="white", linestyle=":")


def _asides(count: int, width: float = 0.5) -> list[float]:
    """Places side by side around 0."""
    return np.linspace(-width / 2, width / 2, count).tolist() if count > 1 else [0.0]


def _look(place: int) -> tuple[str, str]:
    return PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]


def _name_blocks(axes: Axes) -> None:
    axes.set_xlabel("after block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _member_marks(names: Sequence[str]) -> list[Line2D]:
    members = [mark(*_look(place), name, linestyle="-") for place, name in enumerate(names)]
    return [*members, mark(MUTED, "o", _RANDOM, markerfacecolor="white", linestyle=":")]


def _band() -> Patch:
    return Patch(color=BAND, label="95% of random directions")
