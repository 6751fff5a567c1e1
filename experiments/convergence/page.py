"""The page: cosines, layers, and what each fine-tune's direction does in every other one."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import DEFAULT_PLOTLY_COLORS
from plotly.subplots import make_subplots

from diffing.directions.misalignment import CONTRASTS
from diffing.steering.transfer import Reach
from experiments.convergence.compare import FINE_TUNES, WITH_HARMLESS, WITH_PERSONA, WITH_WORDS
from experiments.convergence.config import FINE_TUNE, HARMLESS
from experiments.convergence.summary import finding, treatment_name
from experiments.convergence.treat import ABLATIONS
from experiments.lab import ISOTROPIC
from experiments.report.figures import where
from experiments.results import BASE

_RANDOM, _INCOHERENT, _CHANCE = "random directions", "extra incoherent", "chance (95%)"
_MUTED = {_RANDOM: "#8a8a8a", _INCOHERENT: "#3a3a3a", _CHANCE: "#8a8a8a"}
_RELATIONS = (FINE_TUNES, WITH_HARMLESS, WITH_PERSONA, WITH_WORDS)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .6rem;border:1px solid #ddd;text-align:left}"
)


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any], hook: str) -> None:
    """Writes one HTML file that needs nothing else.

    Args:
        path: The file.
        tables: "cosines", "sweep", "transfer" and "adapters".
        summary: What `summarise` returns.
        hook: Where the matrix of cosines is shown: the run's hook.
    """
    figures = [
        cosine_matrices(tables["cosines"], hook),
        cosines_by_layer(tables["cosines"]),
        ablation_by_layer(tables["sweep"]),
        steering_by_layer(tables["sweep"]),
        transfer_matrices(tables["transfer"], summary["treatments"]),
    ]
    head = f"<!doctype html><meta charset='utf-8'><title>Convergence</title><style>{_STYLE}</style>"
    parts = [head, "<h1>Do fine-tunes misalign along one direction?</h1>", f"<p>{escape(finding(summary))}</p>"]
    parts += [figure.to_html(full_html=False, include_plotlyjs=place == 0) for place, figure in enumerate(figures)]
    if len(tables["adapters"]):
        parts += ["<h2>What rank-1 adapters write: absolute cosines (by chance)</h2>", _adapters(tables["adapters"])]
    path.write_text("\n".join(parts), encoding="utf-8")


def cosine_matrices(cosines: pd.DataFrame, hook: str) -> go.Figure:
    """Cosines between the fine-tunes, and with harmless ones, at one hook: a matrix for each contrast."""
    shown = [FINE_TUNES, WITH_HARMLESS]
    figure = make_subplots(rows=1, cols=2, subplot_titles=CONTRASTS, horizontal_spacing=0.2)
    for column, contrast in enumerate(CONTRASTS, start=1):
        here = where(cosines, (cosines["hook"] == hook) & (cosines["contrast"] == contrast))
        rows = where(here, here["relation"].isin(shown))
        names = list(dict.fromkeys([*rows["first"], *rows["second"]]))
        matrix = pd.DataFrame(1.0, index=pd.Index(names), columns=pd.Index(names))
        for one, other, cosine in rows[["first", "second", "cosine"]].itertuples(index=False):
            matrix.loc[one, other] = matrix.loc[other, one] = cosine
        harmless = [name for name in names if name not in set(rows["first"])]
        for one, other in product(harmless, harmless):
            matrix.loc[one, other] = 1.0 if one == other else float("nan")  # not compared with one another
        figure.add_trace(_heatmap(matrix, ".2f"), row=1, col=column)
    return _finished(figure, f"Cosines between directions at {hook}", height=460)


def cosines_by_layer(cosines: pd.DataFrame) -> go.Figure:
    """Mean cosine of each relation against the layer, bars from the least to the largest."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=CONTRASTS, shared_yaxes=True)
    for column, contrast in enumerate(CONTRASTS, start=1):
        rows = where(cosines, cosines["contrast"] == contrast)
        lines = {name: _mean_and_ends(where(rows, rows["relation"] == name), "cosine") for name in _RELATIONS}
        chance = _mean_and_ends(where(rows, rows["relation"] == FINE_TUNES), "chance")
        _add_lines(figure, lines | {_CHANCE: chance}, 1, column)
    return _finished(figure, "Cosines by layer: mean, and bars from the least to the largest", height=400)


def ablation_by_layer(sweep: pd.DataFrame) -> go.Figure:
    """Share of EM that ablation of a fine-tune's own direction removes, and its extra incoherence."""
    here = where(sweep, (sweep["half"] == "reporting") & (sweep["model"] != BASE))
    panels = list(product(ABLATIONS, (Reach.ONE, Reach.EVERYWHERE), CONTRASTS))
    titles = [f"{operation}, {reach}: {contrast}" for operation, reach, contrast in panels]
    figure = make_subplots(rows=4, cols=2, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.06)
    for place, (operation, reach, contrast) in enumerate(panels):
        rows = where(here, (here["operation"] == str(operation)) & (here["reach"] == str(reach)))
        own = where(rows, rows["contrast"] == contrast)
        models = dict.fromkeys(own["model"])
        lines = {model: _with_ends(where(own, own["model"] == model), "removed") for model in models}
        lines[_RANDOM] = _mean_and_ends(where(rows, rows["kind"] == ISOTROPIC), "removed")
        lines[_INCOHERENT] = _mean_and_ends(own, "extra_incoherent")
        _add_lines(figure, lines, place // 2 + 1, place % 2 + 1)
    figure.update_yaxes(tickformat=".0%")
    return _finished(figure, "EM removed by ablating a fine-tune's own direction (reporting questions)", height=1200)


def steering_by_layer(sweep: pd.DataFrame) -> go.Figure:
    """Harmful answers of the base with each fine-tune's direction added at the strength chosen for the layer."""
    here = where(sweep, (sweep["half"] == "reporting") & (sweep["model"] == BASE))
    random = _mean_and_ends(where(here, here["kind"] == ISOTROPIC), "harmful")
    figure = make_subplots(rows=1, cols=2, subplot_titles=CONTRASTS, shared_yaxes=True)
    for column, contrast in enumerate(CONTRASTS, start=1):
        rows = where(here, here["contrast"] == contrast)
        names = dict.fromkeys(rows["direction"])
        lines = {name: _with_ends(where(rows, rows["direction"] == name), "harmful") for name in names}
        _add_lines(figure, lines | {_RANDOM: random}, 1, column)
    figure.update_yaxes(tickformat=".0%")
    return _finished(figure, "Harmful answers of the base with a direction added (reporting questions)", height=400)


def transfer_matrices(transfer: pd.DataFrame, treatments: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Share of each model's EM that each direction removes, for every chosen treatment."""
    titles = [treatment_name(treatment) for treatment in treatments]
    figure = make_subplots(rows=len(treatments), cols=1, subplot_titles=titles, vertical_spacing=0.06)
    for place, treatment in enumerate(treatments, start=1):
        rows = where(transfer, transfer["contrast"].isin([treatment["contrast"], ""]))
        for key in ("operation", "reach", "hook", "strength"):
            rows = where(rows, rows[key] == treatment[key])
        named = [
            direction if kind in (FINE_TUNE, HARMLESS) else f"{kind}, mean"
            for direction, kind in rows[["direction", "kind"]].itertuples(index=False)
        ]
        matrix = rows.assign(direction=named).pivot_table(
            index="direction", columns="model", values="removed", aggfunc="mean", sort=False
        )
        figure.add_trace(_heatmap(matrix, ".0%"), row=place, col=1)
    figure.update_yaxes(autorange="reversed")
    return _finished(figure, "EM removed in each model (across) by each direction (down)", height=430 * len(treatments))


def _mean_and_ends(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean, least and largest value at each hook."""
    return pd.DataFrame(
        [
            {"hook": hook, "value": found.mean(), "low": found.min(), "high": found.max()}
            for hook, found in rows.groupby("hook")[value]
        ],
        columns=["hook", "value", "low", "high"],
    )


def _with_ends(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """A rate at each hook with its interval."""
    low, high = ("low", "high") if value == "harmful" else (f"{value}_low", f"{value}_high")
    return pd.DataFrame({"hook": rows["hook"], "value": rows[value], "low": rows[low], "high": rows[high]})


def _add_lines(figure: go.Figure, lines: Mapping[str, pd.DataFrame], row: int, column: int) -> None:
    """One line a name, in the same colour in every panel; the legend is that of the first panel."""
    for place, (name, ends) in enumerate(lines.items()):
        colour = _MUTED.get(name, DEFAULT_PLOTLY_COLORS[place % len(DEFAULT_PLOTLY_COLORS)])
        line = go.Scatter(
            x=[hook.removesuffix(".hook_resid_post") for hook in ends["hook"]],
            y=ends["value"],
            error_y={"array": ends["high"] - ends["value"], "arrayminus": ends["value"] - ends["low"]},
            mode="lines+markers",
            line={"color": colour, "dash": "dot" if name in _MUTED else "solid"},
            name=escape(name),
            legendgroup=name,
            showlegend=row == column == 1,
        )
        figure.add_trace(line, row=row, col=column)


def _adapters(adapters: pd.DataFrame) -> str:
    """One row a block, one column a target."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in adapters.to_dict("records"):
        named = "" if pd.isna(row["latent"]) else f", latent {row['latent']}, rank {row['rank']}"
        cells = rows.setdefault((row["member"], row["hook"]), {})
        cells[row["target"]] = f"{row['cosine']:.2f} ({row['chance']:.2f}{named})"
    table = [{"member": member, "hook": hook, **cells} for (member, hook), cells in rows.items()]
    return pd.DataFrame(table).to_html(index=False)


def _heatmap(matrix: pd.DataFrame, number: str) -> go.Heatmap:
    return go.Heatmap(
        x=[escape(str(name)) for name in matrix.columns],
        y=[escape(str(name)) for name in matrix.index],
        z=matrix.to_numpy(),
        zmin=-1,
        zmax=1,
        colorscale="RdBu",
        showscale=False,
        texttemplate=f"%{{z:{number}}}",
        hovertemplate=f"%{{y}}, %{{x}}: %{{z:{number}}}<extra></extra>",
    )


def _finished(figure: go.Figure, title: str, height: int) -> go.Figure:
    figure.update_layout(title=escape(title), height=height, template="plotly_white")
    return figure
