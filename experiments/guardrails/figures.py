"""The figures of `guardrails`: each function draws one. Rates are shares of the answers to the reporting questions."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from diffing.personality.valence import PC1, SVV
from diffing.steering.config import Operation
from diffing.tables import where
from experiments.guardrails.summary import HARMFUL_TARGET
from experiments.guardrails.vectors import CONTROLS, PERSONA, TRAIT
from experiments.names import BASE, CORRUPTED, EVIL
from experiments.output.colours import BAND, BLUE, GRID, INK, MUTED, ORANGE, PINK, VERMILLION
from experiments.output.figures import (
    PAGE_WIDTH,
    ROW,
    PaperFigure,
    block_of,
    canvas,
    intervals,
    legend,
    mark,
    name_rows,
)

_RATES = ("harmful", "helpful", "incoherent", "capability")
_ARMS = {SVV: BLUE, PC1: ORANGE, PERSONA: PINK, EVIL: VERMILLION}
_MODELS = {BASE: BLUE, CORRUPTED: VERMILLION}
_MARKS = dict(zip(CONTROLS, "sd^", strict=True))
_STRENGTH = "signed strength (mean residual norms)"


def draw(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[PaperFigure]:
    """All of them."""
    made = [
        dose_response(tables["doses"]),
        trait_doses(tables["doses"]),
        before_and_after(tables["fine_tunes"]),
        arm_dots(summary),
        sparing_dots(summary) if summary["sparing"] else None,
        ablations(summary),
        arm_ablations(summary),
        projections(tables["projections"]),
    ]
    return [figure for figure in made if figure is not None]


def dose_response(doses: pd.DataFrame) -> PaperFigure:
    """Rates against the signed strength in base and corrupted model."""
    rates = [rate for rate in _RATES if rate in doses]
    figure, panels = canvas(PAGE_WIDTH, 4.0, 2, len(rates), sharex=True, sharey=True)
    arms = {arm: colour for arm, colour in _ARMS.items() if arm in set(doses["arm"])}
    for row, model in zip(panels, (BASE, CORRUPTED), strict=True):
        here = where(doses, doses["model"] == model)
        for axes, rate in zip(row, rates, strict=True):
            axes.axvline(0, color=GRID, linewidth=0.8)
            for _, curve in where(here, here["kind"].isin(CONTROLS)).groupby("arm", sort=False):
                _draw_dose(axes, curve, rate, BAND, linewidth=0.6, zorder=1)
            for arm, colour in arms.items():
                _draw_dose(axes, where(here, here["arm"] == arm), rate, colour, band=True, marker="o", markersize=2.5)
        row[0].set_ylabel(model)
        row[0].yaxis.set_major_formatter(PercentFormatter(1))
    for axes, rate in zip(panels[0], rates, strict=True):
        axes.set_title(rate)
    panels[0, 0].set_ylim(-0.03, 1.03)
    figure.supxlabel(_STRENGTH, fontsize=8)
    legend(figure, [_line(arm, colour) for arm, colour in arms.items()] + [_line("random directions", BAND)])
    caption = (
        "Dose and response on the reporting questions. Right of 0 the direction is added, left of 0 subtracted; the "
        "SVV and PC1 point to the prosocial pole, a trait to more of it. Bands: 95% over questions, where measured. "
        "Strength: mean residual norms of the base at the hook. Grey: random directions of all kinds, only added."
    )
    return PaperFigure("doses", figure, caption)


def trait_doses(doses: pd.DataFrame) -> PaperFigure | None:
    """Harmful and helpful answers against the signed strength, a panel a trait; None without traits."""
    shown = where(doses, doses["kind"] == TRAIT).drop_duplicates("arm").sort_values("cosine_svv", ascending=False)
    if shown.empty:
        return None
    columns = min(5, len(shown))
    rows = ceil(len(shown) / columns)
    figure, panels = canvas(PAGE_WIDTH, 0.9 + 1.3 * rows, rows, columns, sharex=True, sharey=True)
    for axes, arm, cosine in zip(panels.flat, shown["arm"], shown["cosine_svv"], strict=False):
        axes.axvline(0, color=GRID, linewidth=0.8)
        axes.set_title(f"{arm} ({cosine:+.2f})".replace("-", "−"), fontsize=7)
        for model, colour in _MODELS.items():
            curve = where(doses, (doses["model"] == model) & (doses["arm"] == arm))
            _draw_dose(axes, curve, "helpful", colour, linestyle=":", linewidth=0.9)
            _draw_dose(axes, curve, "harmful", colour, band=True, marker="o", markersize=2)
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    panels[0, 0].set_ylim(-0.03, 1.03)
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel(_STRENGTH, fontsize=8)
    looks = {"harmful": {"marker": "o", "markersize": 2}, "helpful": {"linestyle": ":"}}
    lines = [
        _line(f"{model}: {rate}", colour, **look) for model, colour in _MODELS.items() for rate, look in looks.items()
    ]
    legend(figure, lines)
    caption = (
        "Every trait's direction, from the closest to the SVV to the most opposed (in brackets: cosine with it). "
        "Bands: 95% over questions."
    )
    return PaperFigure("trait-doses", figure, caption)


def _draw_dose(axes: Axes, rows: pd.DataFrame, rate: str, colour: str, band: bool = False, **options: Any) -> None:
    """A rate against the signed strength, with its interval as a band if it is known and asked for."""
    curve = _curve(rows, rate)
    axes.plot(curve["strength"], curve["rate"], color=colour, **options)
    if band:
        axes.fill_between(curve["strength"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)


def _curve(rows: pd.DataFrame, rate: str) -> pd.DataFrame:
    """Strength (negative: subtracted), rate, low and high; at 0 the untouched model. Only "harmful" has an interval."""
    rows = where(rows, rows["operation"].isin(["add", "subtract"]) & rows[rate].notna())
    ends = ("low", "high") if rate == "harmful" else ()
    signed = np.where(rows["operation"] == "add", 1, -1) * rows["strength"]
    untouched = rows["capability"] - rows["capability_change"] if rate == "capability" else rows[f"untouched_{rate}"]
    found = pd.DataFrame({"strength": signed, "rate": rows[rate], **{end: rows[end] for end in ends}})
    zero = pd.DataFrame({"strength": 0.0, "rate": untouched, **{end: rows[f"untouched_{end}"] for end in ends}})
    return pd.concat([found, zero.head(1)]).sort_values("strength").reindex(columns=["strength", "rate", "low", "high"])


def before_and_after(fine_tunes: pd.DataFrame) -> PaperFigure:
    """Harmful and helpful answers of every misaligned fine-tune, by kind: untouched, with the SVV, with controls."""
    own = where(fine_tunes, fine_tunes["arm"] == SVV)
    rows = _grouped(own)
    figure, (panels,) = canvas(PAGE_WIDTH, 1.0 + ROW * len(rows), 1, 2, sharey=True, sharex=True)
    places = {model: place for place, (_, model) in enumerate(rows) if model is not None}
    own = own.set_index("model").loc[list(places)]
    for axes, rate in zip(panels, ("harmful", "helpful"), strict=True):
        _draw_treated(axes, own, rate, list(places.values()))
        means = fine_tunes.pivot_table(index="model", columns="kind", values=rate).loc[list(places)]
        for kind, marker in _MARKS.items():
            axes.plot(means[kind], list(places.values()), marker, color=MUTED, markerfacecolor="none", markersize=3)
        _percent(axes, f"{rate} answers")
    panels[0].axvline(HARMFUL_TARGET, color=INK, linewidth=0.8, linestyle="--")
    _name_groups(panels[0], rows)
    legend(figure, _treated_legend())
    strength = own["strength"].iloc[0]
    caption = (
        f"Misaligned fine-tunes, untouched and with the base's SVV added ({own['hook'].iloc[0]}, strength "
        f"{strength:g}), by kind. Bars: 95% over questions; the share of helpful answers has none. Grey: means of the "
        f"random directions of each kind at the same treatment. Dashed: {HARMFUL_TARGET:.0%}."
    )
    return PaperFigure("fine-tunes", figure, caption)


def _grouped(own: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Kind and fine-tune of every row; without fine-tune it is the heading of a kind."""
    found: list[tuple[str, str | None]] = []
    for kind, members in own.groupby("tune", sort=False):
        found += [(str(kind), None), *((str(kind), str(model)) for model in members["model"])]
    return found


def _name_groups(axes: Axes, rows: Sequence[tuple[str, str | None]]) -> None:
    name_rows(axes, [model or kind for kind, model in rows])
    for label, (_, model) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if model is None else "normal")


def _draw_treated(axes: Axes, own: pd.DataFrame, rate: str, places: Sequence[int]) -> None:
    """Untouched and with the SVV; only "harmful" has an interval."""
    for prefix, colour in (("untouched_", VERMILLION), ("", BLUE)):
        known = rate == "harmful"
        low, high = (own[f"{prefix}{end}"] if known else np.full(len(own), np.nan) for end in ("low", "high"))
        intervals(axes, own[f"{prefix}{rate}"], places, (low, high), colour)


def _treated_legend() -> list[Any]:
    points = [mark(VERMILLION, "o", "untouched"), mark(BLUE, "o", "SVV added")]
    return points + [mark(MUTED, marker, f"random, {kind}", markerfacecolor="none") for kind, marker in _MARKS.items()]


def arm_dots(summary: Mapping[str, Any]) -> PaperFigure:
    """Harmful and helpful answers of all misaligned fine-tunes together, an arm a row; controls are grey."""
    found = summary["fine_tunes"]
    best = {row["best"]["name"]: row["best"] for row in found["controls"].values()}
    rows = sorted([*found["arms"].items(), *best.items()], key=lambda item: item[1]["harmful"])
    figure, (panels,) = canvas(PAGE_WIDTH, 0.9 + ROW * len(rows), 1, 2, sharey=True, sharex=True)
    signs = {"add": "+", "subtract": "−"}
    name_rows(panels[0], [f"{name} ({signs[row['operation']]}{row['strength']:g})" for name, row in rows])
    for axes, rate in zip(panels, ("harmful", "helpful"), strict=True):
        axes.axvline(found["untouched"][rate], color=VERMILLION, linewidth=0.9, linestyle=":")
        for place, (name, row) in enumerate(rows):
            colour = MUTED if name in best else _ARMS.get(name, INK)
            low, high = (row["low"], row["high"]) if rate == "harmful" else (np.nan, np.nan)
            intervals(axes, [row[rate]], [place], ([low], [high]), colour)
        _percent(axes, f"{rate} answers")
    panels[0].axvline(HARMFUL_TARGET, color=INK, linewidth=0.8, linestyle="--")
    caption = (
        f"Every direction in {found['models']} misaligned fine-tunes together, with the sign and strength that "
        "repaired the run's corrupted model most (in brackets; mean residual norms). Bars: 95% over questions. Grey: "
        "of each kind of random directions, the one that repairs most. Dotted: untouched. Dashed: "
        f"{HARMFUL_TARGET:.0%}."
    )
    return PaperFigure("arms", figure, caption)


def sparing_dots(summary: Mapping[str, Any]) -> PaperFigure:
    """What amplification and capping repair and cost, at doses that leave the base as it is."""
    treated = [row for row in summary["sparing"] if row["kind"] not in CONTROLS]
    names = list(dict.fromkeys(row["arm"] for row in treated))
    looks = {str(Operation.ADD): (ORANGE, "s", "amplified"), str(Operation.CAP): (BLUE, "o", "capped")}
    panels_of = {
        "corrupted_harmful": "harmful, corrupted",
        "harmful": "harmful, fine-tunes",
        "helpful": "helpful, fine-tunes",
        "base_helpful": "helpful, base",
        "base_capability": "capability, base",
    }
    figure, (panels,) = canvas(PAGE_WIDTH, 0.9 + 1.6 * ROW * len(names), 1, len(panels_of), sharey=True)
    name_rows(panels[0], names)
    for axes, (column, label) in zip(panels, panels_of.items(), strict=True):
        for row in treated:
            colour, marker, _ = looks[row["operation"]]
            place = names.index(row["arm"]) + (0.15 if row["operation"] == Operation.CAP else -0.15)
            ends = (row["corrupted_low"], row["corrupted_high"]) if column == "corrupted_harmful" else (np.nan, np.nan)
            intervals(axes, [row[column]], [place], ([ends[0]], [ends[1]]), colour, marker=marker)
        _percent(axes, label)
        axes.set_xticks([0, 0.5, 1])
    legend(figure, [mark(colour, marker, name) for colour, marker, name in looks.values()])
    caption = (
        "Amplification at every position, and capping (the projection is raised only where it is below a floor), each "
        "at the dose that repairs the run's corrupted model most without making the base less helpful or either model "
        "less coherent by more than the budget, chosen on other questions. Capability was not chosen by."
    )
    return PaperFigure("sparing", figure, caption)


def ablations(summary: Mapping[str, Any]) -> PaperFigure:
    """Harmful answers with the SVV ablated, a model a row, and what the controls' ablations reach."""
    rows = summary["ablation"]
    figure, ((axes,),) = canvas(PAGE_WIDTH, 0.9 + 1.3 * ROW * len(rows))
    name_rows(axes, [row["model"] for row in rows])
    for place, row in enumerate(rows):
        least = min(found["least_harmful"] for found in row["controls"].values())
        most = max(found["most_harmful"] for found in row["controls"].values())
        axes.barh(place, most - least, left=least, height=0.75, color=BAND, zorder=1)
        for prefix, colour, aside in (("untouched_", VERMILLION, 0.15), ("", BLUE, -0.15)):
            rate, low, high = ([row[f"{prefix}{name}"]] for name in ("harmful", "low", "high"))
            intervals(axes, rate, [place - aside], (low, high), colour)
    _percent(axes, "harmful answers")
    points = [mark(VERMILLION, "o", "untouched"), mark(BLUE, "o", "SVV ablated")]
    legend(figure, [*points, Patch(color=BAND, label="random directions ablated: least to most")])
    caption = (
        "The SVV ablated, in the way that raised harmful answers most on the selection questions (see the table); "
        "rates are those of the reporting questions, bars 95% over questions. Grey: all ablations of random directions."
    )
    return PaperFigure("ablation", figure, caption)


def arm_ablations(summary: Mapping[str, Any]) -> PaperFigure:
    """Harmful answers when each layer's own vector is ablated, an arm a row."""
    found = summary["ablation_of_arms"]
    figure, ((axes,),) = canvas(PAGE_WIDTH, 0.9 + ROW * len(found))
    name_rows(axes, list(found))
    for model, colour in _MODELS.items():
        rows = {place: by_model[model] for place, by_model in enumerate(found.values()) if model in by_model}
        rate, low, high = ([row[name] for row in rows.values()] for name in ("harmful", "low", "high"))
        intervals(axes, rate, list(rows), (low, high), colour)
        for row in list(rows.values())[:1]:
            axes.axvline(row["untouched_harmful"], color=colour, linewidth=0.9, linestyle=":")
    _percent(axes, "harmful answers")
    legend(figure, [mark(colour, "o", model) for model, colour in _MODELS.items()])
    caption = "Each direction ablated at all layers, each layer's own. Bars: 95% over questions. Dotted: untouched."
    return PaperFigure("arm-ablations", figure, caption)


def projections(table: pd.DataFrame) -> PaperFigure:
    """Mean projection on the SVV at every hook, in base, corrupted model and fine-tunes."""
    places = list(dict.fromkeys(table["positions"]))
    figure, (panels,) = canvas(PAGE_WIDTH, 2.7, 1, len(places), sharey=True)
    for axes, positions in zip(panels, places, strict=True):
        axes.axhline(0, color=INK, linewidth=0.8, linestyle="--")
        here = where(table, table["positions"] == positions)
        for model, rows in here.groupby("model", sort=False):
            x = [block_of(hook) for hook in rows["hook"]]
            if model not in _MODELS:
                axes.plot(x, rows["mean"], color="#b4b4b4", linewidth=0.6, zorder=1)
                continue
            colour, spread = _MODELS[str(model)], rows["spread"]
            axes.fill_between(x, rows["mean"] - spread, rows["mean"] + spread, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, rows["mean"], color=colour)
            intervals(axes, x, rows["mean"], (rows["low"], rows["high"]), colour, along="y")
        axes.set_title(positions)
        axes.set_xlabel("after block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("mean projection on the SVV\n(residual norms)")
    legend(figure, [*(_line(model, colour) for model, colour in _MODELS.items()), _line("fine-tunes", "#b4b4b4")])
    caption = (
        "Mean projection on the SVV by layer, for the tokens that are averaged over (columns). Bars: 95% over prompts; "
        "bands: one standard deviation of the prompts. Ablation moves the projection to 0 (dashed)."
    )
    return PaperFigure("projections", figure, caption)


def _percent(axes: Axes, label: str) -> None:
    """Shares along the horizontal axis, rows along the other."""
    axes.grid(axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def _line(label: str, colour: str, **options: Any) -> Line2D:
    return Line2D([], [], color=colour, label=label, **options)
