"""The page of `guardrails`: dose-response, fine-tunes before and after, ablations, projections."""

from collections.abc import Mapping
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import DEFAULT_PLOTLY_COLORS
from plotly.subplots import make_subplots

from experiments.personas.guardrails.summary import HARMFUL_TARGET, ablation_name, between, finding
from experiments.personas.guardrails.vectors import CONTROLS, SVV, TRAIT
from experiments.report.figures import MUTED, where
from experiments.results import BASE, CORRUPTED

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}td,th{padding:.2rem .6rem}"
)
_RATES = ("harmful", "helpful", "incoherent", "capability")


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else.

    Args:
        path: The file.
        tables: "doses", "ablations", "fine_tunes" and "projections".
        summary: What `summarise` returns.
    """
    figures = [
        dose_response(tables["doses"]),
        before_and_after(tables["fine_tunes"]),
        projections(tables["projections"]),
    ]
    head = f"<!doctype html><meta charset='utf-8'><title>Guardrails</title><style>{_STYLE}</style>"
    parts = [head, "<h1>Are directions of social valence guardrails?</h1>", f"<p>{escape(finding(summary))}</p>"]
    parts += [figure.to_html(full_html=False, include_plotlyjs=place == 0) for place, figure in enumerate(figures)]
    for title, rows in (
        ("Each arm in all misaligned fine-tunes", _arm_rows(summary)),
        ("The SVV ablated, as chosen on the selection questions", _ablation_rows(summary)),
        ("Each arm ablated at all layers", _arm_ablation_rows(summary)),
        ("Fine-tunes", _fine_tune_rows(tables["fine_tunes"])),
    ):
        parts += [f"<h2>{title}</h2>", pd.DataFrame(rows).to_html(index=False, border=0)]
    path.write_text("\n".join(parts), encoding="utf-8")


def dose_response(doses: pd.DataFrame) -> go.Figure:
    """Rates against the signed strength in base and corrupted model; traits are hidden until chosen in the legend."""
    rates = [rate for rate in _RATES if rate in doses]
    titles = [f"{model}: {rate}" for rate in rates for model in (BASE, CORRUPTED)]
    figure = make_subplots(rows=len(rates), cols=2, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.05)
    kinds = dict(zip(doses["arm"].tolist(), doses["kind"].tolist(), strict=True))
    first_of_kind = {kind: arm for arm, kind in reversed(kinds.items())}
    for (row, rate), (column, model) in product(enumerate(rates, 1), enumerate((BASE, CORRUPTED), 1)):
        here = where(doses, doses["model"] == model)
        for place, (arm, kind) in enumerate(kinds.items()):
            random = kind in CONTROLS
            colour = "lightgrey" if random else DEFAULT_PLOTLY_COLORS[place % len(DEFAULT_PLOTLY_COLORS)]
            line = _line(where(here, here["arm"] == arm), rate, colour)
            line.name = line.legendgroup = kind if random else escape(arm)
            line.visible = "legendonly" if kind == TRAIT else True
            line.showlegend = (row, column) == (1, 1) and (not random or first_of_kind[kind] == arm)
            figure.add_trace(line, row=row, col=column)
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    figure.update_xaxes(title_text="strength (mean residual norms of the base)", row=len(rates))
    return _finished(
        figure, "Dose and response (reporting questions); the SVV's positive side is prosocial", 300 * len(rates)
    )


def _line(rows: pd.DataFrame, rate: str, colour: str) -> go.Scatter:
    """A rate against the signed strength."""
    rows = where(rows, rows["operation"].isin(["add", "subtract"]))
    rows = rows.assign(signed=np.where(rows["operation"] == "add", 1, -1) * rows["strength"]).sort_values("signed")
    bars = {"array": rows["high"] - rows[rate], "arrayminus": rows[rate] - rows["low"]} if rate == "harmful" else None
    look: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 4}, "line": {"color": colour}}
    return go.Scatter(x=rows["signed"], y=rows[rate], error_y=bars, **look)


def before_and_after(fine_tunes: pd.DataFrame) -> go.Figure:
    """Harmful answers of every misaligned fine-tune: untouched, with the SVV, with random directions."""
    own = where(fine_tunes, fine_tunes["arm"] == SVV)
    names = [f"{escape(model)}<br>{escape(tune)}" for model, tune in zip(own["model"], own["tune"], strict=True)]
    figure = go.Figure(
        [
            _bars(names, own, "untouched_", "untouched", DEFAULT_PLOTLY_COLORS[3]),
            _bars(names, own, "", "SVV added", DEFAULT_PLOTLY_COLORS[2]),
        ]
    )
    for kind, opacity in zip(CONTROLS, (1.0, 0.7, 0.4), strict=True):
        random = where(fine_tunes, fine_tunes["kind"] == kind)
        means = [where(random, random["model"] == model)["harmful"].mean() for model in own["model"]]
        bar = {"color": MUTED, "opacity": opacity}
        figure.add_bar(x=names, y=means, name=f"{kind} directions, mean", marker=bar)
    figure.add_hline(y=HARMFUL_TARGET, line_dash="dot")
    figure.update_yaxes(tickformat=".0%", title_text="harmful answers")
    return _finished(figure, "Misaligned fine-tunes with vectors of the base (line: 3%)", 520)


def _bars(names: list[str], rows: pd.DataFrame, prefix: str, name: str, colour: str) -> go.Bar:
    rate, low, high = (rows[f"{prefix}{end}"] for end in ("harmful", "low", "high"))
    ends = {"array": high - rate, "arrayminus": rate - low}
    return go.Bar(x=names, y=rate, error_y=ends, name=name, marker={"color": colour})


def projections(table: pd.DataFrame) -> go.Figure:
    """Mean projection on the SVV at every hook, in base, corrupted model and fine-tunes; bars: spread over prompts."""
    places = list(dict.fromkeys(table["positions"]))
    figure = make_subplots(rows=1, cols=len(places), subplot_titles=places, shared_yaxes=True)
    for (column, positions), model in product(enumerate(places, 1), dict.fromkeys(table["model"])):
        rows = where(table, (table["positions"] == positions) & (table["model"] == model))
        main = model in (BASE, CORRUPTED)
        line = go.Scatter(x=rows["hook"], y=rows["mean"], name=escape(model), legendgroup=model, showlegend=column == 1)
        if main:
            line.error_y = {"array": rows["spread"]}
        else:
            line.line = {"color": "lightgrey"}
        figure.add_trace(line, row=1, col=column)
    figure.add_hline(y=0, line_dash="dot")
    return _finished(figure, "Mean projection on the SVV (residual norms); ablation moves it to 0", 460)


def _arm_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    found = summary["fine_tunes"]
    cost = summary["cost"]["arms"]
    best = {row["best"]["name"]: row["best"] for row in found["controls"].values()}
    return [
        {
            "arm": name,
            "cosine with SVV": f"{row['cosine_svv']:.2f}",
            "treatment": f"{row['operation']} {row['strength']:g}",
            "harmful": between(row),
            "most harmful": f"{row['highest_harmful']:.1%}",
            "helpful": f"{row['helpful']:.1%}",
            "incoherent": f"{row['incoherent']:.1%}",
            "base helpful": f"{cost[name]['helpful']:.1%}" if name in cost else "",
            "reach the target": f"{len(row['reached'])} of {found['models']}",
        }
        for name, row in (found["arms"] | best).items()
    ]


def _ablation_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "model": row["model"],
            "ablation": ablation_name(row),
            "untouched: harmful": between(row, "untouched_"),
            "ablated: harmful": between(row),
            "helpful": f"{row['helpful']:.1%}",
            "incoherent": f"{row['incoherent']:.1%}",
            **{f"{kind}: most harmful": f"{found['most_harmful']:.1%}" for kind, found in row["controls"].items()},
        }
        for row in summary["ablation"]
    ]


def _arm_ablation_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"arm": arm, **{f"{model}: harmful": between(row) for model, row in by_model.items()}}
        for arm, by_model in summary["ablation_of_arms"].items()
    ]


def _fine_tune_rows(fine_tunes: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "fine-tune": row["model"],
            "kind": row["tune"],
            "untouched: harmful": between(row, "untouched_"),
            "SVV added: harmful": between(row),
            "helpful": f"{row['helpful']:.1%}",
            "incoherent": f"{row['incoherent']:.1%}",
        }
        for row in where(fine_tunes, fine_tunes["arm"] == SVV).to_dict("records")
    ]


def _finished(figure: go.Figure, title: str, height: int) -> go.Figure:
    figure.update_layout(title=escape(title), height=height, template="plotly_white")
    return figure
