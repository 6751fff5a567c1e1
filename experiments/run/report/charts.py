"""Plotly figures of the report.

Figures are made for a light page; on a dark one the page's script exchanges the named colours for their counterparts
(`DARK_COLOURS`). Plotly reads a little HTML in its labels, so every name from the data is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go

from diffing.tables import where
from experiments.output.colours import BLUE, GREEN, GRID, INK, MUTED, VERMILLION
from sae.evaluate import DENSITY_BINS, DENSITY_ENDS

NULL_BAND = "rgba(138,138,138,0.3)"
DARK_COLOURS = {
    INK: "#d6d3cb",
    MUTED: "#85827b",
    GRID: "#34363a",
    BLUE: "#56b4e9",
    VERMILLION: "#f0803c",
    GREEN: "#2fc79b",
}
_FILL = {BLUE: "rgba(0,114,178,0.16)", VERMILLION: "rgba(213,94,0,0.16)"}
CONTROL_KINDS = ("isotropic", "covariance", "decoder_row")
# As SVG, more points than this make a page slow.
SCATTER_POINTS = 3000


def shift_scatter(table: pd.DataFrame, cosine: str, axis: str, marked: int | None) -> go.Figure:
    """Shift against signed cosine, one point a latent that is active in either model.

    Where there is a null of benign fine-tunes, a grey band spans the shifts of all latents in all of them.

    Args:
        table: The ranking's table.
        cosine: Column of the horizontal axis.
        axis: What that column is the cosine with.
        marked: Latent drawn in the accent colour, if any.
    """
    alive = where(table, (table["frequency_base"] > 0) | (table["frequency_corrupted"] > 0))
    shown = alive.nsmallest(SCATTER_POINTS, "rank")
    is_marked = shown["latent"] == marked
    figure = _figure(height=400)
    figure.add_traces(
        [
            _latent_points(where(shown, ~is_marked), cosine, BLUE, size=6, opacity=0.55),
            _latent_points(where(shown, is_marked), cosine, VERMILLION, size=11, opacity=1.0),
        ]
    )
    for row in shown.head(5).to_dict("records"):
        figure.add_annotation(
            x=row[cosine], y=row["shift"], text=str(row["latent"]), showarrow=False, yshift=13, font_size=11
        )
    if "null_low" in table:
        ends = table[["null_low", "null_high"]].to_numpy()
        figure.add_hrect(y0=ends.min(), y1=ends.max(), fillcolor=NULL_BAND, line_width=0, layer="below")
    figure.update_xaxes(title_text=f"cosine with {escape(axis)}", zeroline=True)
    figure.update_yaxes(title_text="shift (corrupted − base)", zeroline=True)
    return figure


def _latent_points(rows: pd.DataFrame, cosine: str, colour: str, size: int, opacity: float) -> go.Scatter:
    return go.Scatter(
        x=rows[cosine].tolist(),
        y=rows["shift"].tolist(),
        customdata=rows[["latent", "rank", "q"]].to_numpy().tolist(),
        mode="markers",
        marker={"color": colour, "size": size, "opacity": opacity},
        hovertemplate="latent %{customdata[0]} (rank %{customdata[1]})<br>shift %{y:.3f}, cosine %{x:.3f}"
        "<br>q %{customdata[2]:.2g}<extra></extra>",
    )


def shift_intervals(top: pd.DataFrame) -> go.Figure:
    """Shift of the top latents with intervals, beside the benign control's where there is one.

    Where there is a null of benign fine-tunes, a grey band spans each latent's shifts in all of them.

    Args:
        top: First rows of the ranking's table.
    """
    figure = _figure(height=90 + 23 * len(top))
    if "null_low" in top:
        figure.add_trace(_null_bands(top))
    if "shift_benign" in top:
        figure.add_trace(_interval_points(top, "_benign", "benign", GREEN, "diamond"))
    figure.add_trace(_interval_points(top, "", "corrupted", VERMILLION, "circle"))
    figure.update_xaxes(title_text="shift against the base", zeroline=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=True, title_text="latent")
    return figure


def _null_bands(top: pd.DataFrame) -> go.Bar:
    low, high = top["null_low"], top["null_high"]
    return go.Bar(
        base=low.tolist(),
        x=(high - low).tolist(),
        y=top["latent"].astype(str).tolist(),
        orientation="h",
        width=0.7,
        marker={"color": NULL_BAND, "line": {"width": 0}},
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="latent %{y}, benign fine-tunes: %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
    )


def _interval_points(top: pd.DataFrame, suffix: str, name: str, colour: str, symbol: str) -> go.Scatter:
    shift, low, high = (top[f"{column}{suffix}"] for column in ("shift", "low", "high"))
    return go.Scatter(
        x=shift.tolist(),
        y=top["latent"].astype(str).tolist(),
        error_x={
            "array": (high - shift).tolist(),
            "arrayminus": (shift - low).tolist(),
            "color": colour,
            "thickness": 1.4,
            "width": 3,
        },
        mode="markers",
        marker={"color": colour, "size": 8, "symbol": symbol},
        name=name,
        hovertemplate=f"latent %{{y}}, {name}: %{{x:.3f}}<extra></extra>",
    )


def dose_response(
    steering: pd.DataFrame, model: str, operation: str, rate: str, marked: int | None
) -> go.Figure | None:
    """A rate against steering strength, for the selection half; the chosen strength's reporting half as diamonds.

    Treatments get their interval as a band (harmful only, for which it is known), controls are thin grey lines.

    Args:
        steering: Table of steering results.
        model: The steered model.
        operation: "add" or "subtract".
        rate: Column drawn: "harmful", "helpful" or "incoherent".
        marked: The latent to draw in the accent colour; other latents are left out.

    Returns:
        None if the table has no such cells.
    """
    of_model = where(steering, steering["model"] == model)
    untouched = where(of_model, of_model["kind"] == "untouched")
    drawn = of_model["kind"].isin((*CONTROL_KINDS, "direction")) | is_arm_of(of_model, marked)
    shown = where(of_model, (of_model["operation"] == operation) & drawn)
    if shown.empty:
        return None
    figure = _figure(height=270)
    # Treatments last, so that they are drawn over the controls.
    is_control = shown["kind"].isin(CONTROL_KINDS)
    for arm in pd.concat([where(shown, is_control), where(shown, ~is_control)])["arm"].unique():
        figure.add_traces(_dose_traces(where(shown, shown["arm"] == arm), untouched, rate))
    figure.update_xaxes(title_text="strength (mean residual norms)", rangemode="tozero")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def _dose_traces(rows: pd.DataFrame, untouched: pd.DataFrame, rate: str) -> list[go.Scatter]:
    arm, kind = str(rows["arm"].iloc[0]), str(rows["kind"].iloc[0])
    control = kind in CONTROL_KINDS
    colour = MUTED if control else VERMILLION if kind == "latent" else BLUE
    curve = pd.concat([where(cells, cells["half"] == "selection") for cells in (untouched, rows)])
    curve = curve.sort_values(by="strength")
    chosen = where(rows, rows["half"] == "reporting")
    hover = f"{escape(arm)}<br>strength %{{x:.2f}}: {rate} %{{y:.1%}}<extra></extra>"
    x, y = curve["strength"].tolist(), curve[rate].tolist()
    line = go.Scatter(
        x=x,
        y=y,
        mode="lines" if control else "lines+markers",
        line={"color": colour, "width": 1 if control else 2},
        marker={"size": 5},
        opacity=0.55 if control else 1.0,
        hovertemplate=hover,
    )
    error = {"array": chosen["high"] - chosen[rate], "arrayminus": chosen[rate] - chosen["low"], "thickness": 1.2}
    marks = go.Scatter(
        x=chosen["strength"].tolist(),
        y=chosen[rate].tolist(),
        error_y=error if rate == "harmful" else None,
        mode="markers",
        marker={"color": colour, "size": 6 if control else 11, "symbol": "diamond", "line": {"width": 0}},
        opacity=0.7 if control else 1.0,
        hovertemplate=hover.replace("<extra>", " (reporting half)<extra>"),
    )
    if control or rate != "harmful":
        return [line, marks]
    band = go.Scatter(
        x=x + x[::-1],
        y=curve["high"].tolist() + curve["low"].tolist()[::-1],
        mode="lines",
        fill="toself",
        fillcolor=_FILL[colour],
        line_width=0,
        hoverinfo="skip",
    )
    return [band, line, marks]


def interference_scatter(table: pd.DataFrame, latent: int) -> go.Figure | None:
    """Cosine of decoder rows with the steered latent's against how the two are active together, a point a latent.

    Those that move although they are never active together are in the accent colour. Latents without a phi (never or
    always active) are left out.

    Args:
        table: Of `diffing.ranking.interference`.
        latent: The steered latent, left out as well.

    Returns:
        None if no latent has a phi: the steered one is never active.
    """
    drawn = where(table, table["phi"].notna() & (table["latent"] != latent)).head(SCATTER_POINTS)
    if drawn.empty:
        return None
    marked = drawn["moved_never_co_active"]
    figure = _figure(height=340)
    figure.add_trace(_phi_points(where(drawn, ~marked), BLUE, size=6, opacity=0.55))
    figure.add_trace(_phi_points(where(drawn, marked), VERMILLION, size=9, opacity=1.0))
    figure.update_xaxes(title_text=f"decoder cosine with latent {latent}", zeroline=True)
    figure.update_yaxes(title_text="co-activation (phi)", zeroline=True)
    return figure


def _phi_points(rows: pd.DataFrame, colour: str, size: int, opacity: float) -> go.Scatter:
    return go.Scatter(
        x=rows["cosine"].tolist(),
        y=rows["phi"].tolist(),
        customdata=rows[["latent", "change", "co_active_rows", "expected_rows"]].to_numpy().tolist(),
        mode="markers",
        marker={"color": colour, "size": size, "opacity": opacity},
        hovertemplate="latent %{customdata[0]}: change %{customdata[1]:.3f}<br>cosine %{x:.3f}, phi %{y:.3f}"
        "<br>%{customdata[2]} common rows, %{customdata[3]:.1f} expected<extra></extra>",
    )


def rebuilt_directions(rebuild: Mapping[str, Mapping[int, float]]) -> go.Figure:
    """Fraction of each direction's squared norm that n latents rebuild, against n."""
    figure = _figure(height=300, legend=True)
    dashes = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
    colours = (VERMILLION, BLUE, GREEN, MUTED)
    for index, (name, fractions) in enumerate(rebuild.items()):
        figure.add_trace(
            go.Scatter(
                x=[str(n) for n in fractions],
                y=list(fractions.values()),
                name=escape(name),
                mode="lines+markers",
                line={"color": colours[index % 4], "width": 2, "dash": dashes[index // 4 % 6]},
                hovertemplate="%{x} latents: %{y:.1%}<extra>" + escape(name) + "</extra>",
            )
        )
    figure.update_xaxes(title_text="latents", type="category")
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def density_histogram(densities: Mapping[str, Sequence[int]]) -> go.Figure:
    """Number of latents by the share of tokens on which they are active, one line of steps a model.

    Args:
        densities: Model -> its `Reconstruction.density`.
    """
    figure = _figure(height=260)
    low, high = DENSITY_ENDS
    edges = [low + (high - low) * i / DENSITY_BINS for i in range(DENSITY_BINS + 1)]
    for (model, counts), colour in zip(densities.items(), (BLUE, VERMILLION), strict=False):
        figure.add_trace(
            go.Scatter(
                x=edges,
                y=[*counts, counts[-1]],
                name=escape(model),
                mode="lines",
                line={"color": colour, "width": 2, "shape": "hv"},
                fill="tozeroy",
                fillcolor=_FILL[colour],
                hovertemplate=f"10^%{{x}} and more: %{{y}} latents<extra>{escape(model)}</extra>",
            )
        )
    figure.update_xaxes(title_text="log10 of the share of tokens on which a latent is active")
    figure.update_yaxes(title_text="latents", rangemode="tozero")
    return figure


def is_arm_of(steering: pd.DataFrame, latent: int | None) -> pd.Series:
    """Rows of the arm that steers with a latent; controls that are decoder rows name a latent too, and don't count."""
    return cast(pd.Series, (steering["kind"] == "latent") & (steering["latent"] == latent).fillna(False))


def _figure(height: int, legend: bool = False) -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": MUTED,
        "zeroline": False,
        "linecolor": MUTED,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 10},
    }
    layout: dict[str, Any] = {
        "template": "none",
        "autosize": True,
        "height": height,
        "margin": {"l": 46, "r": 12, "t": 12, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": INK},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "xaxis": axis,
        "yaxis": axis,
    }
    return go.Figure(layout=layout)
