"""The page of the personality space: one HTML file that needs no network; each figure can be saved from it as SVG.

Plotly reads a little HTML in its labels, so every name from the data is escaped.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from experiments.report.figures import BLUE, GREEN, INK, MUTED, NULL_BAND, VERMILLION, where
from experiments.results import BASE

if TYPE_CHECKING:
    from experiments.personas.space.geometry import Geometry, Spaces

COLOURS = {"prosocial": GREEN, "antisocial": VERMILLION, "neutral": MUTED, None: INK}
_LINES = (BLUE, VERMILLION, GREEN, "#cc79a7", "#e69f00")
_TEMPLATE = "plotly_white"
# What the camera button of a figure saves: a vector graphic, for a paper.
_CONFIG = {"toImageButtonOptions": {"format": "svg"}, "displaylogo": False}
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Personality space</title><style>'
    "body { margin: 2rem auto; max-width: 70rem; font-family: system-ui, sans-serif; }"
    "td, th { padding: .2rem .8rem; text-align: right; }</style></head><body>"
)


def write_page(
    path: Path,
    spaces: "Spaces",
    found: Mapping[str, "Geometry"],
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, Any],
) -> None:
    """Writes the page.

    Args:
        path: HTML file, replaced if it exists.
        spaces: What was compared.
        found: Every model's geometry.
        tables: Those of `geometry`.
        summary: That of `geometry`.
    """
    compared = spaces.others[0].name
    charts = [
        cosine_matrices(found, compared),
        *(dendrogram_of(found[name], name, spaces.valence) for name in (BASE, compared)),
        trait_maps(tables["traits"], found, compared),
        valence_loadings(tables["traits"], compared),
        stability_scatter(tables["cosines"], spaces, compared, summary),
        layer_lines(tables["stability"], tables["generator"], compared),
    ]
    if len(tables["toxic"]):
        charts.append(toxic_bars(tables["toxic"], summary))
    if len(tables["shift"]):
        charts.append(shift_bars(tables["shift"], summary["hook"]))
    html = [chart.to_html(full_html=False, include_plotlyjs=not i, config=_CONFIG) for i, chart in enumerate(charts)]
    path.write_text(f"{_HEAD}{_numbers(summary)}{''.join(html)}</body></html>", encoding="utf-8")


def cosine_matrices(found: Mapping[str, "Geometry"], compared: str) -> go.Figure:
    """Cosines between traits in the base and in another model, both in the order of the base's tree."""
    shown = {name: found[name] for name in (BASE, compared)}
    made = make_subplots(rows=1, cols=2, subplot_titles=[escape(name) for name in shown], horizontal_spacing=0.16)
    for column, one in enumerate(shown.values(), start=1):
        order = [trait for trait in found[BASE].tree.order if trait in one.traits]
        places = [one.traits.index(trait) for trait in order]
        names = [escape(trait) for trait in order]
        cells = one.cosines[np.ix_(places, places)]
        made.add_trace(go.Heatmap(z=cells, x=names, y=names, coloraxis="coloraxis"), row=1, col=column)
    made.update_yaxes(autorange="reversed")
    axis = {"colorscale": "RdBu", "reversescale": True, "cmin": -1, "cmax": 1, "colorbar": {"title": "cosine"}}
    return made.update_layout(title="Cosines between traits", height=560, template=_TEMPLATE, coloraxis=axis)


def dendrogram_of(one: "Geometry", model: str, valence: Mapping[str, str | None]) -> go.Figure:
    """The tree of traits (average linkage of 1 - cosine); labels have the colour of the valence."""
    drawn = dendrogram(one.tree.merges, no_plot=True, labels=list(one.tree.traits))
    made = go.Figure()
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        made.add_trace(go.Scatter(x=x, y=y, mode="lines", line={"color": INK, "width": 1.5}, hoverinfo="skip"))
    labels = [f'<span style="color:{COLOURS[valence[trait]]}">{escape(trait)}</span>' for trait in drawn["ivl"]]
    made.update_xaxes(tickvals=[10 * i + 5 for i in range(len(labels))], ticktext=labels, tickangle=-45, showgrid=False)
    made.update_yaxes(title_text="1 − cosine")
    return made.update_layout(
        title=f"Tree of traits: {escape(model)}", height=420, template=_TEMPLATE, showlegend=False
    )


def trait_maps(traits: pd.DataFrame, found: Mapping[str, "Geometry"], compared: str) -> go.Figure:
    """The first two principal components in the base and in another model."""
    titles = [
        f"{escape(name)} ({found[name].map.explained[:2].sum():.0%} of the variance)" for name in (BASE, compared)
    ]
    made = make_subplots(rows=1, cols=2, subplot_titles=titles)
    for column, model in enumerate((BASE, compared), start=1):
        rows = where(traits, traits["model"] == model)
        for valence, here in rows.groupby("valence", dropna=False):
            name = valence if isinstance(valence, str) else None
            points = go.Scatter(
                x=here["x"],
                y=here["y"],
                text=here["trait"].map(escape),
                mode="markers+text",
                cliponaxis=False,
                textposition="top center",
                marker={"size": 9, "color": COLOURS[name]},
                name=name or "no valence",
                legendgroup=str(name),
                showlegend=column == 1,
            )
            made.add_trace(points, row=1, col=column)
    made.update_xaxes(title_text="PC1 (towards prosocial)")
    made.update_yaxes(title_text="PC2", col=1)
    return made.update_layout(title="Map of the traits", height=520, template=_TEMPLATE)


def valence_loadings(traits: pd.DataFrame, compared: str) -> go.Figure:
    """Loading of every trait on PC1, the base's order in both models."""
    made = make_subplots(rows=1, cols=2, subplot_titles=[escape(BASE), escape(compared)], shared_yaxes=True)
    base = where(traits, traits["model"] == BASE).sort_values("pc1")
    for column, model in enumerate((BASE, compared), start=1):
        rows = where(traits, traits["model"] == model).set_index("trait").reindex(base["trait"])
        colours = [COLOURS[v if isinstance(v, str) else None] for v in rows["valence"]]
        bars = go.Bar(x=rows["pc1"], y=base["trait"].map(escape), orientation="h", marker={"color": colours})
        made.add_trace(bars, row=1, col=column)
    made.update_xaxes(title_text="cosine with PC1")
    title = "Valence: loadings on the first component (green prosocial, red antisocial, grey neutral)"
    return made.update_layout(title=title, height=480, template=_TEMPLATE, showlegend=False)


def stability_scatter(pairs: pd.DataFrame, spaces: "Spaces", compared: str, summary: Mapping[str, Any]) -> go.Figure:
    """One point a pair of traits: its cosine in the base against that in the other model, and in the generator."""
    base = where(pairs, pairs["model"] == BASE).set_index(["trait", "other"])["cosine"]
    other = where(pairs, pairs["model"] == compared).set_index(["trait", "other"])["cosine"]
    panels = {compared: (other, _headline(summary, "stability")[compared])}
    if spaces.generator is not None:
        known = pd.Series({pair: float(spaces.generator.loc[pair]) for pair in base.index}, name="cosine")
        panels["generator"] = (known, _headline(summary, "generator")[BASE])
    titles = [f"RSA {row['rsa']:.2f} [{row['low']:.2f}, {row['high']:.2f}] over traits" for _, row in panels.values()]
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=titles)
    for column, (name, (other, _)) in enumerate(panels.items(), start=1):
        both = pd.concat({"x": base, "y": other}, axis=1).dropna()
        text = [escape(f"{trait} · {second}") for trait, second in both.index]
        points = go.Scatter(x=both["x"], y=both["y"], text=text, mode="markers", marker={"color": BLUE, "opacity": 0.7})
        made.add_trace(points, row=1, col=column)
        made.update_yaxes(title_text=f"cosine, {escape(name)}", row=1, col=column)
    made.update_xaxes(title_text="cosine, base")
    return made.update_layout(title="Is the geometry the same?", height=460, template=_TEMPLATE, showlegend=False)


def layer_lines(stability: pd.DataFrame, generator: pd.DataFrame, compared: str) -> go.Figure:
    """RSA at every layer: base against the other model, and base against the generator where it is known."""
    panels = {f"base against {escape(compared)}": where(stability, stability["model"] == compared)}
    if len(generator):
        panels["base against the generator"] = where(generator, generator["model"] == BASE)
    made = make_subplots(rows=1, cols=len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for column, rows in enumerate(panels.values(), start=1):
        for place, (at, here) in enumerate(rows.groupby("positions", sort=False)):
            line = go.Scatter(
                x=[str(hook).split(".")[1] for hook in here["hook"]],
                y=here["rsa"],
                error_y={"array": here["high"] - here["rsa"], "arrayminus": here["rsa"] - here["low"], "width": 2},
                mode="lines+markers",
                name=str(at),
                legendgroup=str(at),
                showlegend=column == 1,
                line={"color": _LINES[place % len(_LINES)]},
            )
            made.add_trace(line, row=1, col=column)
    made.update_xaxes(title_text="after block")
    made.update_yaxes(title_text="RSA (95% over traits)", col=1)
    return made.update_layout(title="Stability and agreement by layer", height=460, template=_TEMPLATE)


def toxic_bars(toxic: pd.DataFrame, summary: Mapping[str, Any]) -> go.Figure:
    """The toxic latent's cosine with every trait and axis; grey is what random directions reach."""
    rows = where(toxic, toxic["positions"] == summary["positions"]).sort_values("cosine")
    names = rows["target"].map(escape)
    made = go.Figure()
    width = rows["null_high"] - rows["null_low"]
    null = go.Bar(x=width, base=rows["null_low"], y=names, orientation="h", marker={"color": NULL_BAND}, width=0.8)
    made.add_trace(null.update(name="random directions, 95%"))
    bars = {"array": (rows["high"] - rows["cosine"]).fillna(0), "arrayminus": (rows["cosine"] - rows["low"]).fillna(0)}
    points = go.Scatter(
        x=rows["cosine"], y=names, error_x=bars, mode="markers", marker={"color": VERMILLION, "size": 9}
    )
    made.add_trace(points.update(name="toxic latent, 95% over questions"))
    verdict = summary["toxic_latent"][summary["positions"]]
    made.update_xaxes(title_text="cosine")
    made.update_yaxes(type="category")
    title = f"Toxic latent {verdict['latent']} belongs to {escape(str(verdict['belongs_to'] or 'none'))}"
    return made.update_layout(title=title, height=560, template=_TEMPLATE, barmode="overlay")


def shift_bars(shift: pd.DataFrame, hook: str) -> go.Figure:
    """Share of every fine-tune's mean shift that lies in the span of the traits, beside random spans."""
    made = go.Figure()
    here = where(shift, shift["hook"] == hook)
    for (kind, rows), colour in zip(here.groupby("null", sort=False), (MUTED, BLUE), strict=False):
        bars = {"array": rows["null_high"] - rows["null_mean"], "arrayminus": rows["null_mean"] - rows["null_low"]}
        null = go.Scatter(x=rows["model"].map(escape), y=rows["null_mean"], error_y=bars, mode="markers")
        made.add_trace(null.update(marker={"color": colour, "symbol": "line-ew-open"}, name=f"random, {kind} (95%)"))
    once = here.drop_duplicates("model")
    points = go.Scatter(x=once["model"].map(escape), y=once["share"], mode="markers", name="trait space")
    made.add_trace(points.update(marker={"color": VERMILLION, "size": 10}))
    made.update_yaxes(tickformat=".0%", range=[0, 1], title_text="share of the squared norm")
    return made.update_layout(title="Mean shift in the personality space", height=440, template=_TEMPLATE)


def _numbers(summary: Mapping[str, Any]) -> str:
    """Agreement of every model with the base, as a table."""
    columns = ("rsa", "low", "high", "p", "cka_unbiased", "cosine", "aligned_cosine", "overlap", "largest_angle")
    found = _headline(summary, "stability")
    rows = {escape(model): {name: f"{row[name]:.3g}" for name in columns} for model, row in found.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").to_html(border=0)
    at = f"{len(summary['traits'])} traits; {escape(summary['positions'])} at {escape(summary['hook'])}"
    return f"<h1>Personality space</h1><p>{at}. Every model against the base; intervals are 95% over traits.</p>{table}"


def _headline(summary: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Model -> its row at the page's positions and hook."""
    place = (summary["positions"], summary["hook"])
    return {row["model"]: row for row in summary[kind] if (row["positions"], row["hook"]) == place}
