"""The page of a prediction: one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots

from diffing.prediction.evaluate import DIRECTION, KL, LATENT, NORM, PREDICTORS
from experiments.prediction.forecast import FOLLOWED, FRACTION, HARMFUL
from experiments.report.figures import BLUE, GREEN, INK, MUTED, VERMILLION, where

LABELS = {
    HARMFUL: "harmful answers",
    LATENT: "latent",
    DIRECTION: "dense direction",
    NORM: "norm of the mean shift",
    KL: "mean KL",
}
_INVISIBLE = "rgba(0,0,0,0)"
_COLOURS = {LATENT: VERMILLION, DIRECTION: BLUE, NORM: GREEN, KL: MUTED}
_TEMPLATE = "plotly_white"
# Nothing may be fetched, whatever the data or plotly would like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Prediction</title>'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>'
    "body { margin: 2rem; font-family: system-ui, sans-serif; } td, th { padding: .2rem .8rem; text-align: right; }"
    "</style></head><body>"
)


def write_page(path: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Scores by kind, ROC curves, the curves over the fraction of bad data, and the early warning.

    Args:
        path: HTML file, replaced if it exists.
        table: `Analysis.table`.
        summary: `Analysis.summary`.
    """
    final = where(table, table["early_of"].isna())
    charts = [scores_by_kind(final), roc_curves(final, "Held-out kinds")]
    for kind, curve in summary["curves"].items():
        charts.append(over_fractions(where(final, final["kind"] == kind), kind, curve))
    quiet = where(table, table["early_of"].notna() & table["outcome_harmful"].notna())
    if len(quiet):
        charts += [early_scores(quiet), roc_curves(quiet, "Early checkpoints that still behave")]
    parts = [chart.to_html(full_html=False, include_plotlyjs=not i) for i, chart in enumerate(charts)]
    path.write_text(f"{_HEAD}{_numbers(summary)}{''.join(parts)}</body></html>", encoding="utf-8")


def _numbers(summary: Mapping[str, Any]) -> str:
    """The predictors on held-out kinds, as a table."""
    rows = {
        LABELS[name]: {
            "AUC": f"{row['auc']:.3f}",
            "bootstrap over models": _between(row["auc_bootstrap"]),
            "score interval": _between(row["auc_score"]),
            "accuracy": f"{row['accuracy']:.1%}",
            "Wilson interval": _between(row["accuracy_wilson"]),
        }
        for name, row in summary["predictors"].items()
    }
    counts = f"{summary['models']} fine-tunes, {summary['misaligned']} of them misaligned"
    table = pd.DataFrame.from_dict(rows, orient="index").to_html(border=0)
    return f"<h1>Held-out kinds of fine-tunes</h1><p>{counts}; intervals are 95%.</p>{table}"


def _between(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def scores_by_kind(final: pd.DataFrame) -> go.Figure:
    """One strip a kind and predictor; above the line a model is called misaligned."""
    titles = [LABELS[name] for name in PREDICTORS]
    made = make_subplots(rows=len(PREDICTORS), cols=1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=titles)
    for place, name in enumerate(PREDICTORS, start=1):
        for misaligned, label, colour in ((True, "misaligned", VERMILLION), (False, "aligned", BLUE)):
            rows = where(final, final["outcome_misaligned"] == misaligned)
            strip = go.Box(
                x=rows["kind"].map(escape),
                y=rows[f"score_{name}"],
                text=[_hover(row) for row in rows.to_dict("records")],
                boxpoints="all",
                jitter=0.6,
                pointpos=0,
                fillcolor=_INVISIBLE,
                line={"color": _INVISIBLE},
                marker={"color": colour, "size": 7, "opacity": 0.7},
                name=label,
                legendgroup=label,
                showlegend=place == 1,
            )
            made.add_trace(strip, row=place, col=1)
        made.add_hline(y=0, line_dash="dot", line_color=INK, row=place, col=1)  # pyright: ignore[reportArgumentType]
    made.update_yaxes(title_text="score")
    title = "Held-out scores: distance from the training threshold in training standard deviations"
    return made.update_layout(title=title, height=900, template=_TEMPLATE)


def roc_curves(rows: pd.DataFrame, title: str) -> go.Figure:
    """The pooled held-out scores of every predictor."""
    made = go.Figure()
    misaligned = rows["outcome_misaligned"].to_numpy(dtype=bool)
    for name in PREDICTORS:
        false, true = _roc(rows[f"score_{name}"].to_numpy(), misaligned)
        line = go.Scatter(x=false, y=true, name=LABELS[name], line={"color": _COLOURS[name], "width": 2}, mode="lines")
        made.add_trace(line)
    made.update_xaxes(title_text="aligned models called misaligned", range=[-0.02, 1.02])
    made.update_yaxes(title_text="misaligned models found", range=[-0.02, 1.02])
    return made.update_layout(title=f"{escape(title)}: ROC", height=480, width=640, template=_TEMPLATE)


def over_fractions(rows: pd.DataFrame, kind: str, curve: Mapping[str, Any]) -> go.Figure:
    """Each measure against the fraction of bad data, with the largest benign value as a line."""
    rows = rows.sort_values(FRACTION)
    titles = [f"latent {curve['latent']}: shift" if name == LATENT else LABELS[name] for name in FOLLOWED]
    made = make_subplots(rows=len(FOLLOWED), cols=1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=titles)
    for place, name in enumerate(FOLLOWED, start=1):
        bars = {"array": rows[f"{name}_high"] - rows[name], "arrayminus": rows[name] - rows[f"{name}_low"]}
        points = go.Scatter(
            x=[f"{fraction:.4g}%" for fraction in 100 * rows[FRACTION]],
            y=rows[name],
            error_y=bars,
            text=rows["name"].map(escape),
            mode="markers",
            marker={"color": _COLOURS.get(name, INK), "size": 8},
            showlegend=False,
        )
        made.add_trace(points, row=place, col=1)
        limit = curve["onset"][name]["largest_benign"]
        if limit is not None:
            made.add_hline(y=limit, line_dash="dot", line_color=MUTED, row=place, col=1)  # pyright: ignore[reportArgumentType]
    made.update_xaxes(title_text="fraction of bad data", row=len(FOLLOWED), col=1)
    made.update_yaxes(tickformat=".0%", row=1, col=1)
    title = f"{escape(kind)}: over the fraction of bad data (dotted: the largest value of a benign model)"
    return made.update_layout(title=title, height=950, template=_TEMPLATE)


def early_scores(quiet: pd.DataFrame) -> go.Figure:
    """Scores of early checkpoints that still behave against the harmful answers of what they became."""
    titles = [LABELS[name] for name in PREDICTORS]
    made = make_subplots(rows=1, cols=len(PREDICTORS), shared_yaxes=True, subplot_titles=titles)
    for place, name in enumerate(PREDICTORS, start=1):
        points = go.Scatter(
            x=quiet[f"score_{name}"],
            y=quiet["outcome_harmful"],
            text=[_hover(row) for row in quiet.to_dict("records")],
            mode="markers",
            marker={"color": quiet["step"].astype(float), "coloraxis": "coloraxis", "size": 8},
            showlegend=False,
        )
        made.add_trace(points, row=1, col=place)
        made.add_vline(x=0, line_dash="dot", line_color=INK, row=1, col=place)  # pyright: ignore[reportArgumentType]
    made.update_xaxes(title_text="held-out score")
    made.update_yaxes(title_text="harmful answers at the end", tickformat=".0%", col=1)
    title = "Early warning: checkpoints that still behave, and what became of them"
    coloraxis = {"colorscale": "Viridis", "colorbar": {"title": "step"}}
    return made.update_layout(title=title, height=460, template=_TEMPLATE, coloraxis=coloraxis)


def _hover(row: Mapping[str, Any]) -> str:
    latent = f", latent {row['scored_latent']}"
    return f"{escape(row['name'])}: {row[HARMFUL]:.1%} harmful, in the end {row['outcome_harmful']:.1%}{latent}"


def _roc(
    scores: Float[np.ndarray, "model"], misaligned: Bool[np.ndarray, "model"]
) -> tuple[Sequence[float], Sequence[float]]:
    """Shares of aligned and of misaligned models above every cut, from the strictest on."""
    cuts = [np.inf, *np.unique(scores)[::-1].tolist()]
    called = [scores >= cut for cut in cuts]
    return [float(c[~misaligned].mean()) for c in called], [float(c[misaligned].mean()) for c in called]
