"""The page of the monitor: one HTML file that needs no network; each figure can be saved from it as SVG."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from experiments.personas.space.geometry import EVIL
from experiments.report.figures import BLUE, GREEN, MUTED, NULL_BAND, VERMILLION, where

_COLOURS = (VERMILLION, BLUE, GREEN, "#cc79a7", "#e69f00", MUTED)
_TEMPLATE = "plotly_white"
_CONFIG = {"toImageButtonOptions": {"format": "svg"}, "displaylogo": False}
# Nothing may be fetched, whatever the data or plotly would like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Monitor</title>'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>'
    "body { margin: 2rem auto; max-width: 70rem; font-family: system-ui, sans-serif; }"
    "td, th { padding: .2rem .8rem; text-align: right; }</style></head><body><h1>Trait directions as monitors</h1>"
)


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
        path: HTML file, replaced if it exists.
        tables: Those of `monitor`: "prompts" and "before", and what else there is.
        summary: That of `monitor`.
    """
    before = where(tables["before"], tables["before"]["pole"] == "both")
    charts = [
        by_trait(before.assign(panel=before["model"] + ", " + before["direction"] + " direction"), "Before the answer"),
        before_points(tables["prompts"]),
    ]
    if "shifts" in tables:
        shifts = tables["shifts"]
        title = f"Shift against change in behaviour over {summary['fine_tunes']} fine-tunes"
        charts += [by_trait(shifts.assign(panel=shifts["positions"]), title), shift_points(tables["members"])]
    if "screening" in tables:
        charts += [screening_aucs(tables["screening"]), screening_recall(tables["screening"])]
    html = [chart.to_html(full_html=False, include_plotlyjs=not i, config=_CONFIG) for i, chart in enumerate(charts)]
    path.write_text(f"{_HEAD}<p>Intervals are 95%.</p>{''.join(html)}</body></html>", encoding="utf-8")


def by_trait(rows: pd.DataFrame, title: str) -> go.Figure:
    """Pearson's r of every trait, a panel each; grey is what 95% of random directions stay below in absolute value."""
    panels = list(dict.fromkeys(rows["panel"]))
    titles = [escape(panel) for panel in panels]
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=titles, shared_yaxes=True)
    for column, panel in enumerate(panels, start=1):
        here = where(rows, rows["panel"] == panel)
        names, width = here["trait"].map(escape), here["random_high"]
        null = go.Bar(x=2 * width, base=-width, y=names, orientation="h", marker={"color": NULL_BAND}, width=0.8)
        made.add_trace(null.update(name="random directions", legendgroup="null", showlegend=column == 1), 1, column)
        bars = {"array": here["high"] - here["r"], "arrayminus": here["r"] - here["low"], "width": 2}
        points = go.Scatter(x=here["r"], y=names, error_x=bars, mode="markers", marker={"color": VERMILLION, "size": 8})
        made.add_trace(points.update(name="direction", legendgroup="r", showlegend=column == 1), 1, column)
    made.update_xaxes(title_text="Pearson's r", range=[-1.05, 1.05])
    made.update_yaxes(type="category", autorange="reversed")
    return made.update_layout(title=title, height=520, template=_TEMPLATE, barmode="overlay")


def before_points(prompts: pd.DataFrame) -> go.Figure:
    """Projection and score of every tested prompt of one trait, evil where there is one."""
    trait = _shown(prompts)
    rows = where(prompts, (prompts["trait"] == trait) & (prompts["direction"] == "own"))
    made = make_subplots(rows=1, cols=2, subplot_titles=[escape(name) for name in dict.fromkeys(rows["model"])])
    for column, (_, model) in enumerate(rows.groupby("model", sort=False), start=1):
        for pole, colour in (("high", VERMILLION), ("low", BLUE)):
            here = where(model, model["pole"] == pole)
            points = go.Scatter(x=here["projection"], y=here["score"], mode="markers", marker={"color": colour})
            made.add_trace(points.update(name=f"{pole} pole", legendgroup=pole, showlegend=column == 1), 1, column)
    made.update_xaxes(title_text="projection at the last prompt token")
    made.update_yaxes(title_text="mean trait score of the answers", col=1)
    return made.update_layout(title=f"{escape(trait)}, prompt by prompt", height=420, template=_TEMPLATE)


def shift_points(members: pd.DataFrame) -> go.Figure:
    """Shift and change of every fine-tune for one trait, evil where there is one."""
    trait = _shown(members)
    rows = where(members, members["trait"] == trait)
    panels = list(dict.fromkeys(rows["positions"]))
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=[escape(at) for at in panels], shared_yaxes=True)
    for column, at in enumerate(panels, start=1):
        here = where(rows, rows["positions"] == at)
        points = go.Scatter(x=here["shift"], y=here["change"], text=here["model"].map(escape), mode="markers")
        made.add_trace(points.update(marker={"color": BLUE, "size": 8}), row=1, col=column)
    made.update_xaxes(title_text="mean shift along the direction")
    made.update_yaxes(title_text="change of the mean trait score", col=1)
    title = f"{escape(trait)}, fine-tune by fine-tune"
    return made.update_layout(title=title, height=420, template=_TEMPLATE, showlegend=False)


def screening_aucs(rows: pd.DataFrame) -> go.Figure:
    """AUC of every score in every mixture; for random directions the bars are the central 95% of them."""
    made = go.Figure()
    for (score, here), colour in zip(rows.groupby("score", sort=False), _COLOURS, strict=False):
        bars = {"array": here["high"] - here["auc"], "arrayminus": here["auc"] - here["low"]}
        bar = go.Bar(x=here["mixture"].map(escape), y=here["auc"], error_y=bars, marker={"color": colour})
        made.add_trace(bar.update(name=escape(str(score))))
    made.update_yaxes(title_text="AUC", range=[0, 1.05])
    return made.update_layout(title="Screening: are bad samples ranked first?", height=420, template=_TEMPLATE)


def screening_recall(rows: pd.DataFrame) -> go.Figure:
    """Bad samples among the most suspect, in the first mixture (the one with the fewest bad samples)."""
    here = where(rows, (rows["mixture"] == rows["mixture"].iloc[0]) & rows["score_low"].notna())
    names = [name for name in rows.columns if name.startswith("recall_") and not name.endswith(("_low", "_high"))]
    shares = [float(name.removeprefix("recall_")) for name in names]
    made = go.Figure()
    for row, colour in zip(here.to_dict("records"), _COLOURS, strict=False):
        found = [row[name] for name in names]
        line = go.Scatter(x=shares, y=found, mode="lines+markers", name=escape(row["score"]), line={"color": colour})
        made.add_trace(line)
    chance = go.Scatter(x=shares, y=shares, mode="lines", name="chance", line={"color": MUTED, "dash": "dot"})
    made.add_trace(chance)
    made.update_xaxes(title_text="share of the data that is looked at", tickformat=".0%")
    made.update_yaxes(title_text="bad samples found", tickformat=".0%", range=[0, 1.05])
    title = f"Screening: {escape(str(rows['mixture'].iloc[0]))}"
    return made.update_layout(title=title, height=420, template=_TEMPLATE)


def _shown(rows: pd.DataFrame) -> str:
    traits = list(dict.fromkeys(rows["trait"]))
    return EVIL if EVIL in traits else str(traits[0])
