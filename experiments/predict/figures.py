"""The figures of `predict`: each function draws one. Every interval is 95%."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from diffing.prediction.evaluate import DIRECTION, KL, LATENT, NORM, PREDICTORS
from diffing.tables import where
from experiments.output.colours import BAND, BLUE, GREEN, INK, MUTED, PINK, VERMILLION
from experiments.output.figures import PAGE_WIDTH, ROW, PaperFigure, canvas, intervals, legend, mark, name_rows
from experiments.predict.forecast import FOLLOWED, FRACTION
from experiments.predict.summary import EARLY, FINAL, LABELS, final_models, followed_models, with_outcomes

_COLOURS = {LATENT: VERMILLION, DIRECTION: BLUE, NORM: GREEN, KL: PINK}
_LINES = dict(zip(PREDICTORS, ("-", "--", "-.", ":"), strict=True))
# How a model ends: its name, colour, whether its marker is filled, and how far below a row's middle it is drawn.
_OUTCOMES = {True: ("misaligned", VERMILLION, -0.18), False: ("aligned", BLUE, 0.18)}


def draw(table: pd.DataFrame, summary: Mapping[str, Any]) -> list[PaperFigure]:
    """All figures.

    Args:
        table: `Analysis.table`.
        summary: `Analysis.summary`.
    """
    final, early = final_models(table), with_outcomes(table)
    groups = {FINAL: final} | ({EARLY: early} if len(early) else {})
    forecasts = {FINAL: summary} | ({EARLY: summary["early"]} if len(early) else {})
    figures = [predictor_dots(forecasts), scores_by_kind(final), roc_curves(groups)]
    for number, (kind, curve) in enumerate(summary["curves"].items(), start=1):
        figures.append(over_fractions(followed_models(final, kind), kind, curve, number))
    return [*figures, *([early_scores(early)] if len(early) else [])]


def predictor_dots(forecasts: Mapping[str, Mapping[str, Any]]) -> PaperFigure:
    """AUC and accuracy of every predictor on held-out kinds, and the AUC of random latents.

    Args:
        forecasts: Title -> numbers of a forecast (`Forecast.to_dict`).
    """
    columns = {"auc": ("auc_score", "AUC"), "accuracy": ("accuracy_wilson", "right side of the threshold")}
    names = [*(LABELS[name] for name in PREDICTORS), "random latents"]
    height = 0.6 + len(forecasts) * (0.5 + 1.3 * ROW * len(names))
    figure, panels = canvas(PAGE_WIDTH, height, len(forecasts), len(columns), sharey=True, sharex="col")
    for row, (title, found) in zip(panels, forecasts.items(), strict=True):
        for axes, (value, (ends, _)) in zip(row, columns.items(), strict=True):
            for place, name in enumerate(PREDICTORS):
                shown = found["predictors"][name]
                low, high = shown[ends]
                intervals(axes, [shown[value]], [place], ([low], [high]), _COLOURS[name])
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(-0.03, 1.03)
        _draw_random(row[0], found["random_latent"], len(PREDICTORS))
        name_rows(row[0], names)
        row[0].set_title(title)
        row[0].axvline(0.5, color=MUTED, linewidth=0.6, linestyle=":")
    for axes, (_, label) in zip(panels[-1], columns.values(), strict=True):
        axes.set_xlabel(label)
    panels[0, 1].xaxis.set_major_formatter(PercentFormatter(1))
    caption = (
        "How well the held-out scores tell misaligned from aligned models, by AUC (dotted: chance) and by the share of "
        "models on the right side of the training threshold. Bars: 95% over fine-tunes, by intervals that keep their "
        "width at 1 (score interval of the AUC; Wilson). Open: mean of latents drawn at random; grey: from the worst "
        "to the best of them."
    )
    return PaperFigure("predictors", figure, caption)


def _draw_random(axes: Axes, random: Mapping[str, Any], place: int) -> None:
    if random["latents"]:
        axes.barh(place, random["best"] - random["worst"], left=random["worst"], height=0.6, color=BAND, zorder=1)
        axes.plot(random["auc"], place, "o", color=INK, markerfacecolor="white")


def scores_by_kind(final: pd.DataFrame) -> PaperFigure:
    """One row a kind, one panel a predictor; right of the line a model is called misaligned."""
    kinds = list(dict.fromkeys(final["kind"]))
    figure, (panels,) = canvas(PAGE_WIDTH, 0.9 + 3 * ROW * len(kinds), 1, len(PREDICTORS), sharey=True)
    for axes, name in zip(panels, PREDICTORS, strict=True):
        for misaligned, (_, colour, below) in _OUTCOMES.items():
            for place, kind in enumerate(kinds):
                rows = where(final, (final["kind"] == kind) & (final["outcome_misaligned"] == misaligned))
                spread = below + (np.linspace(-0.14, 0.14, len(rows)) if len(rows) > 1 else np.zeros(len(rows)))
                axes.plot(rows[f"score_{name}"], place + spread, "o", color=colour, **_filled(colour, misaligned))
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(LABELS[name])
        axes.grid(axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    name_rows(panels[0], kinds)
    figure.supxlabel("held-out score (training standard deviations)", fontsize=8)
    marks = [mark(c, "o", label, **_filled(c, known)) for known, (label, c, _) in _OUTCOMES.items()]
    legend(figure, marks, columns=4)
    caption = (
        "Held-out scores of all fine-tunes: distance from the training threshold (dotted) in training standard "
        "deviations, by rules that were fitted without the model's kind. Right of the threshold a model is called "
        "misaligned. Filled: misaligned; open: aligned. The height within a row means nothing else."
    )
    return PaperFigure("scores", figure, caption)


def roc_curves(groups: Mapping[str, pd.DataFrame]) -> PaperFigure:
    """The pooled held-out scores of every predictor, a panel a group of models."""
    figure, (panels,) = canvas(PAGE_WIDTH if len(groups) > 1 else PAGE_WIDTH / 2, 3.6, 1, len(groups), sharey=True)
    for axes, (title, rows) in zip(panels, groups.items(), strict=True):
        misaligned = rows["outcome_misaligned"].to_numpy(dtype=bool)
        axes.axline((0, 0), slope=1, color=BAND, linewidth=0.8, zorder=0)
        for name in PREDICTORS:
            false, true = roc(rows[f"score_{name}"].to_numpy(), misaligned)
            axes.plot(false, true, linestyle=_LINES[name], color=_COLOURS[name])
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", title=title)
        axes.set_xlabel("aligned models called misaligned")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("misaligned models found")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    lines = [mark(_COLOURS[name], "", LABELS[name], linestyle=_LINES[name]) for name in PREDICTORS]
    legend(figure, lines, columns=2 if len(groups) == 1 else 4)
    caption = (
        "ROC curves of the pooled held-out scores: what share of misaligned models lies above each cut, against the "
        "share of aligned ones. Grey: chance."
    )
    return PaperFigure("roc", figure, caption)


def roc(
    scores: Float[np.ndarray, "model"], misaligned: Bool[np.ndarray, "model"]
) -> tuple[Sequence[float], Sequence[float]]:
    """Shares of aligned and of misaligned models above every cut, from the strictest on."""
    cuts = [np.inf, *np.unique(scores)[::-1].tolist()]
    called = [scores >= cut for cut in cuts]
    return [float(c[~misaligned].mean()) for c in called], [float(c[misaligned].mean()) for c in called]


def over_fractions(rows: pd.DataFrame, kind: str, curve: Mapping[str, Any], number: int) -> PaperFigure:
    """Each measure against the fraction of bad data, with the largest benign value as a line.

    Args:
        rows: The models of a kind, by rising fraction (`followed_models`).
        kind: Its name.
        curve: Its entry among `curves` of the summary.
        number: Of the figure; a kind's name may be no name of a file.
    """
    fractions = list(dict.fromkeys(rows[FRACTION]))
    places = np.empty(len(rows))
    for place, fraction in enumerate(fractions):
        here = rows[FRACTION].to_numpy() == fraction
        places[here] = place + 0.14 * (np.arange(here.sum()) - (here.sum() - 1) / 2)
    figure, panels = canvas(PAGE_WIDTH, 4.4, 2, 2, sharex=True)
    for axes, name in zip(panels.flat, FOLLOWED, strict=True):
        ends = (rows[f"{name}_low"], rows[f"{name}_high"])
        intervals(axes, places, rows[name], ends, _COLOURS.get(name, INK), along="y")
        if (limit := curve["onset"][name]["largest_benign"]) is not None:
            axes.axhline(limit, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set_title(f"latent {curve['latent']}: shift" if name == LATENT else LABELS[name])
        axes.grid(axis="y")
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    for axes in panels[-1]:
        axes.set_xticks(range(len(fractions)), [f"{100 * fraction:.4g}%" for fraction in fractions])
        axes.set_xlabel("fraction of bad data")
    caption = (
        f"{kind}: every measure over the fraction of bad data, one point a model. Bars: 95%, of harmful answers over "
        "questions, of the others over prompts. Dotted: the largest value of a benign model."
    )
    return PaperFigure(f"fractions-{number}", figure, caption)


def early_scores(early: pd.DataFrame) -> PaperFigure:
    """Scores of early checkpoints that still behave against the harmful answers of the final models.

    Args:
        early: Rows of those checkpoints, with `outcome_low` and `outcome_high`: ends of `outcome_harmful`.
    """
    figure, (panels,) = canvas(PAGE_WIDTH, 2.9, 1, len(PREDICTORS), sharey=True)
    steps = early["step"].astype(float)
    known = steps.notna().to_numpy()
    colours = Normalize(float(np.nanmin(steps)), float(np.nanmax(steps))) if known.any() else Normalize()
    for axes, name in zip(panels, PREDICTORS, strict=True):
        scores, harmful = early[f"score_{name}"], early["outcome_harmful"]
        axes.vlines(scores, early["outcome_low"], early["outcome_high"], color=BAND, linewidth=0.7, zorder=1)
        axes.plot(scores[~known], harmful[~known], "o", color=MUTED, **_filled(MUTED, filled=False))
        look = {"cmap": "viridis", "norm": colours, "s": 12, "linewidth": 0, "zorder": 3}
        axes.scatter(scores[known], harmful[known], c=steps[known], **look)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(LABELS[name])
        axes.set_xscale("symlog", linthresh=1)
        axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the scale's own writes formulas
    panels[0].set(ylabel="harmful answers at the end", ylim=(-0.03, 1.03))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel("held-out score (training standard deviations)", fontsize=8)
    if known.any():
        steps_bar = ScalarMappable(colours, "viridis")
        figure.colorbar(steps_bar, ax=panels, label="step", aspect=30, ticks=MaxNLocator(5, integer=True))
    caption = (
        "Early warning: checkpoints that still behave, their held-out scores, and the harmful answers of the final "
        "models. Bars: 95% over questions. Right of the dotted line a checkpoint is called misaligned. Beyond 1 the "
        "scale is logarithmic. Colour: step; open: none is given."
    )
    return PaperFigure("early", figure, caption)


def _filled(colour: str, filled: bool) -> dict[str, Any]:
    return {"markerfacecolor": colour if filled else "white", "markersize": 3}
