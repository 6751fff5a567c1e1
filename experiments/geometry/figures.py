"""The figures of the personality space: green is prosocial, red antisocial, grey neutral."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.cluster.hierarchy import dendrogram

from diffing.personality.model_geometry import Geometry
from diffing.personality.valence import SVV
from diffing.tables import where, where_equal
from experiments.frame.experiment import Measured
from experiments.names import BASE
from experiments.output.colours import BAND, BLUE, GREEN, INK, MUTED, ORANGE, VERMILLION
from experiments.output.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    ROW,
    PaperFigure,
    block_of,
    canvas,
    intervals,
    legend,
    name_rows,
)
from experiments.output.labels import name_points

COLOURS = {"prosocial": GREEN, "antisocial": VERMILLION, "neutral": "#6e6e6e", None: INK}
_GENERATOR = "the generator"
_MODEL_COLOURS = (BLUE, VERMILLION)  # base, and what it is compared with
_DARK_BAND = "#b4b4b4"
# Nulls of an RSA: name, colour, and how far beside the layer they are drawn.
_NULLS = {
    "covariance": ("random directions", MUTED, -0.25),
    "shuffled": ("exchanged names", _DARK_BAND, 0.0),
    "other layer": ("other layers", ORANGE, 0.25),
}


def figures(measured: Measured, valence: Mapping[str, str | None], summary: Mapping[str, Any]) -> list[PaperFigure]:
    """All figures; the base is compared with the first other model.

    Args:
        measured: With `Facts`.
        valence: Of every trait.
        summary: That of the experiment.
    """
    facts, tables = measured.facts, measured.tables
    found: Mapping[str, Geometry] = facts.geometries
    compared = next(name for name in found if name != BASE)
    return [
        cosine_matrices(found, compared),
        trees(found, compared, valence),
        trait_maps(tables["traits"], {name: one.map.explained for name, one in found.items()}, compared),
        valence_loadings(tables["traits"], compared),
        _pairs(facts.generator, tables["cosines"], compared, summary),
        layer_lines(tables, compared),
        *_of_models(tables, summary),
    ]


def _pairs(
    generator: pd.DataFrame | None, cosines: pd.DataFrame, compared: str, summary: Mapping[str, Any]
) -> PaperFigure:
    """Every pair of traits in the base, in the other model, and in the generator where it is known."""
    values = ["cosine", "low", "high"]
    by_space = cosines.pivot(index=["trait", "other"], columns="model", values=values)
    found = {compared: _of_place(summary, "stability")[compared]}
    if generator is not None:
        for value in values:
            by_space[value, _GENERATOR] = [float(generator.loc[pair]) for pair in by_space.index]
        found[_GENERATOR] = _of_place(summary, "generator")[BASE]
    return stability_scatter(by_space, found)


def _of_models(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[PaperFigure]:
    """What has a row a model, or a toxic latent."""
    at, hook = summary["positions"], summary["hook"]
    toxic, shift = tables["toxic"], tables["shift"]
    shift = where_equal(shift, hook=hook) if len(shift) else shift
    chance = where_equal(tables["nulls"], positions=at, hook=hook, measure="rsa")
    drawn = [model_dots(_of_place(summary, "stability"), chance)]
    if len(toxic):
        drawn.append(toxic_dots(toxic, summary["toxic_latent"][at], at))
    if len(shift):
        drawn.append(shift_dots(shift))
    return drawn


def _of_place(summary: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Model -> its row at the chosen positions and hook."""
    place = (summary["positions"], summary["hook"])
    return {row["model"]: row for row in summary[kind] if (row["positions"], row["hook"]) == place}


def cosine_matrices(found: Mapping[str, Geometry], compared: str) -> PaperFigure:
    """Cosines between traits in the base and in another model, both in the order of the base's tree."""
    tree = found[BASE].tree
    side = max(2.0, 0.15 * len(tree.order))
    shares = {"width_ratios": (0.45, 1, 1)}
    figure, ((branches, *panels),) = canvas(PAGE_WIDTH, side + 1.4, 1, 3, gridspec_kw=shares)
    _draw_tree(branches, found[BASE])
    branches.tick_params(axis="y", length=0, labelleft=False)
    image = None
    for axes, model in zip(panels, (BASE, compared), strict=True):
        one = found[model]
        cells = pd.DataFrame(one.cosines, index=one.traits, columns=one.traits)
        cells = cells.reindex(index=tree.order, columns=tree.order).to_numpy()
        axes.set_facecolor(BAND)
        image = axes.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(model)
        axes.set_xticks(range(len(tree.order)), tree.order, rotation=90)
        axes.set_yticks(range(len(tree.order)), tree.order if axes is panels[-1] else [])
        axes.yaxis.tick_right()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, location="top", shrink=0.5, aspect=40, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine")
    caption = (
        f"Cosines between the directions of the traits, in the base and in {compared}. Both have the order of the "
        "base's tree (left: average linkage of 1 − cosine)."
    )
    return PaperFigure("cosines", figure, caption)


def trees(found: Mapping[str, Geometry], compared: str, valence: Mapping[str, str | None]) -> PaperFigure:
    """The tree of traits in both models."""
    rows = max(len(found[name].traits) for name in (BASE, compared))
    figure, (panels,) = canvas(PAGE_WIDTH, 0.7 + ROW * rows, 1, 2, sharex=True)
    for axes, model in zip(panels, (BASE, compared), strict=True):
        _draw_tree(axes, found[model])
        axes.yaxis.tick_right()
        axes.tick_params(axis="y", length=0)
        axes.spines["right"].set_visible(False)
        for label in axes.get_yticklabels():
            label.set_color(COLOURS[valence[label.get_text()]])
        axes.set_title(model)
    _valence_legend(figure, set(valence.values()))
    caption = (
        f"Trees of the traits in the base and in {compared}: average linkage (UPGMA) of 1 − cosine; neighbours are "
        "alike. Colours: valence."
    )
    return PaperFigure("trees", figure, caption)


def _draw_tree(axes: Axes, one: Geometry) -> None:
    """Leaves along the vertical axis, the first on top, at heights 0, 1, ...; the root on the left."""
    drawn = dendrogram(one.tree.merges, no_plot=True, labels=list(one.tree.traits))
    for heights, distances in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axes.plot(distances, (np.array(heights) - 5) / 10, color=INK, linewidth=0.8, solid_joinstyle="miter")
    axes.set_yticks(range(len(drawn["ivl"])), drawn["ivl"])
    axes.set_ylim(len(drawn["ivl"]) - 0.5, -0.5)
    axes.set_xlim(max(axes.get_xlim()[0], 1.02 * one.tree.merges[:, 2].max()), 0)
    axes.set_xlabel("1 − cosine")
    axes.spines["left"].set_visible(False)


def trait_maps(traits: pd.DataFrame, explained: Mapping[str, Any], compared: str) -> PaperFigure:
    """The first two principal components in both models, with the SVV between the poles' means."""
    figure, (panels,) = canvas(PAGE_WIDTH, 3.5, 1, 2, sharex=True, sharey=True)
    for axes, model in zip(panels, (BASE, compared), strict=True):
        shares = explained[model]
        axes.set_title(model)
        axes.set_xlabel(f"PC1 ({shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"PC2 ({shares[1]:.0%})" if len(shares) > 1 else "PC1")
        axes.set(xlim=_padded(traits["x"]), ylim=_padded(traits["y"]), aspect="equal")
        axes.axhline(0, color=BAND, linewidth=0.6, zorder=0)
        axes.axvline(0, color=BAND, linewidth=0.6, zorder=0)
        here = where(traits, traits["model"] == model)
        axes.scatter(here["x"], here["y"], s=14, color=_colours(here["valence"]), zorder=3)
    _valence_legend(figure, {_known(v) for v in traits["valence"]})
    for axes, model in zip(panels, (BASE, compared), strict=True):
        _name_traits(axes, where(traits, traits["model"] == model))
    caption = (
        f"Map of the traits: principal components of the unit directions in the base and in {compared}. The arrow is "
        "the Semantic Valence Vector (SVV) in this plane: from the mean of the antisocial to that of the prosocial "
        "traits. PC1 points the way of the SVV."
    )
    return PaperFigure("map", figure, caption)


def _padded(values: Any) -> tuple[float, float]:
    """Limits that leave room for names, and for a single point."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.15 * (high - low) or 1.0
    return low - room, high + room


def _name_traits(axes: Axes, here: pd.DataFrame) -> None:
    """Names, and the arrow of the SVV where there are both poles: their means differ by it, in any plane."""
    places, names, colours = here[["x", "y"]].to_numpy(), here["trait"].tolist(), _colours(here["valence"])
    poles = [places[(here["valence"] == valence).to_numpy()] for valence in ("antisocial", "prosocial")]
    along = np.zeros((0, 2))
    if all(map(len, poles)):
        start, end = (pole.mean(0) for pole in poles)
        axes.annotate("", tuple(end), tuple(start), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1})
        along = np.linspace(start, end, 21)
        places, names, colours = np.vstack([places, along[10]]), [*names, SVV], [*colours, INK]
    name_points(axes, places, names, colours, along)


def valence_loadings(traits: pd.DataFrame, compared: str) -> PaperFigure:
    """Cosine of every trait with PC1 and with the SVV, in both models; the base's order."""
    base = where(traits, traits["model"] == BASE).sort_values("pc1", ascending=False)
    names, colours = base["trait"].tolist(), _colours(base["valence"])
    axis_names = {"pc1": "cosine with PC1", "svv": "cosine with the SVV"}
    shown = {column: label for column, label in axis_names.items() if len(base[column].dropna())}
    figure, (panels,) = canvas(PAGE_WIDTH, 0.8 + 1.2 * ROW * len(names), 1, len(shown), sharey=True, sharex=True)
    for axes, (column, label) in zip(panels, shown.items(), strict=True):
        axes.axvline(0, color=MUTED, linewidth=0.6)
        axes.grid(axis="y")
        axes.tick_params(axis="y", length=0)
        for model, marker, below in ((BASE, "o", -0.16), (compared, "D", 0.16)):
            rows = where(traits, traits["model"] == model).set_index("trait").reindex(names)
            places = np.arange(len(names)) + below
            axes.hlines(places, rows[f"{column}_low"], rows[f"{column}_high"], colors=colours, linewidth=0.9)
            face = colours if model == BASE else "white"
            axes.scatter(rows[column], places, s=14, marker=marker, c=face, edgecolors=colours, linewidth=0.9, zorder=3)
        axes.set(xlabel=label, xlim=(-1.05, 1.05))
    name_rows(panels[0], names)
    _valence_legend(figure, {_known(v) for v in base["valence"]}, marks={BASE: "o", compared: "D"})
    caption = (
        "Valence: cosine of each trait's direction with the first principal component (PC1) and with the Semantic "
        f"Valence Vector (SVV) of its own model; filled: base, open: {compared}. Bars: 95% over questions."
    )
    return PaperFigure("valence", figure, caption)


def stability_scatter(cosines: pd.DataFrame, found: Mapping[str, Mapping[str, Any]]) -> PaperFigure:
    """One point a pair of traits: its cosine in the base against that in another space.

    Args:
        cosines: A row a pair of traits; columns are pairs of "cosine", "low" or "high" and the space.
        found: Name of another space than the base -> its row with RSA and interval.
    """
    figure, (panels,) = canvas(COLUMN_WIDTH * len(found) + 0.3, 3.1, 1, len(found))
    for axes, (name, row) in zip(panels, found.items(), strict=True):
        x, x_low, x_high, y, y_low, y_high = (
            cosines[value, space].to_numpy() for space in (BASE, name) for value in ("cosine", "low", "high")
        )
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.6, linestyle=":")
        axes.hlines(y, x_low, x_high, color=BAND, linewidth=0.5, zorder=1)
        axes.vlines(x, y_low, y_high, color=BAND, linewidth=0.5, zorder=1)
        axes.scatter(x, y, s=10, color=BLUE, alpha=0.7, linewidth=0, zorder=2)
        axes.set_title(f"RSA {row['rsa']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
        axes.set(xlabel="cosine in the base", ylabel=f"cosine in {name}")
    caption = (
        "Is the geometry the same? One point a pair of traits; grey: 95% over questions. RSA: Spearman's correlation "
        "of the two cosine matrices, with its 95% interval over traits. Dotted: equal cosines."
    )
    return PaperFigure("pairs", figure, caption)


def layer_lines(tables: Mapping[str, pd.DataFrame], compared: str) -> PaperFigure:
    """RSA at every layer, a column for each positions: with the base, and with the generator where it is known."""
    stability, generator, nulls = (tables[name] for name in ("stability", "generator", "nulls"))
    positions = list(dict.fromkeys(stability["positions"]))
    kinds = [stability] + [generator] * bool(len(generator))
    figure, panels = canvas(PAGE_WIDTH, 0.8 + 1.6 * len(kinds), len(kinds), len(positions), sharey=True, sharex=True)
    for line, table in zip(panels, kinds, strict=True):
        for axes, at in zip(line, positions, strict=True):
            _draw_layers(axes, where(table, table["positions"] == at), compared)
            if table is stability:
                axes.set_title(at)
                here = (nulls["positions"] == at) & (nulls["model"] == compared) & (nulls["measure"] == "rsa")
                _draw_nulls(axes, where(nulls, here))
            axes.axhline(0, color=MUTED, linewidth=0.6)
        line[0].set_ylabel("RSA with the base" if table is stability else "RSA with the generator")
    for axes in panels[-1]:
        axes.set_xlabel("after block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _layer_legend(figure, compared, {*stability["model"]})
    caption = (
        "Stability and agreement by layer; columns: tokens that activations are averaged over. Bands: 95% over traits. "
        "Vertical bars, at the base's chosen layer: 95% of the RSA of random directions with the activations' "
        "covariance, of traits with exchanged names, and between different layers."
    )
    return PaperFigure("layers", figure, caption)


def _draw_layers(axes: Axes, rows: pd.DataFrame, compared: str) -> None:
    """Base and compared model with bands, all others as thin lines."""
    for model, here in rows.groupby("model", sort=False):
        blocks = [block_of(hook) for hook in here["hook"]]
        if model not in (BASE, compared):
            axes.plot(blocks, here["rsa"], color=_DARK_BAND, linewidth=0.7, zorder=2)
            continue
        colour = _MODEL_COLOURS[model != BASE]
        axes.fill_between(blocks, here["low"], here["high"], color=colour, alpha=0.2, linewidth=0)
        axes.plot(blocks, here["rsa"], color=colour, marker="o", zorder=3)


def _draw_nulls(axes: Axes, chance: pd.DataFrame) -> None:
    for row in chance.to_dict("records"):
        if row["null"] in _NULLS:
            _, colour, aside = _NULLS[row["null"]]
            axes.vlines(block_of(row["hook"]) + aside, row["null_low"], row["null_high"], color=colour, linewidth=2.5)


def _layer_legend(figure: Figure, compared: str, models: set[str]) -> None:
    names = {BASE: BLUE, compared: VERMILLION} | ({"other models": _DARK_BAND} if models - {BASE, compared} else {})
    lines = [Line2D([], [], color=colour, label=name) for name, colour in names.items()]
    nulls = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour, _ in _NULLS.values()]
    legend(figure, lines + nulls)


def model_dots(rows: Mapping[str, Mapping[str, Any]], chance: pd.DataFrame) -> PaperFigure:
    """RSA of every model with the base; grey is what exchanged names reach."""
    names = sorted(rows, key=lambda name: -rows[name]["rsa"])
    figure, ((axes,),) = canvas(PAGE_WIDTH, 0.8 + ROW * len(names))
    name_rows(axes, names)
    null = where(chance, chance["null"] == "shuffled").set_index("model").reindex(names)
    _draw_band(axes, null["null_low"], null["null_high"], BAND, "exchanged names, 95%")
    values, low, high = ([rows[name][key] for name in names] for key in ("rsa", "low", "high"))
    intervals(axes, values, range(len(names)), (low, high), VERMILLION, label="RSA, 95% over traits")
    axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.set_xlabel("RSA with the base")
    figure.legend(loc="outside upper center", ncols=2)
    caption = "Stability of the space in every model: RSA with the base. Grey: traits with exchanged names."
    return PaperFigure("models", figure, caption)


def toxic_dots(toxic: pd.DataFrame, verdict: Mapping[str, Any], positions: str) -> PaperFigure:
    """The toxic latent's cosine with every trait and axis; grey is what random directions reach."""
    rows = where(toxic, toxic["positions"] == positions).sort_values("cosine", ascending=False)
    figure, ((axes,),) = canvas(PAGE_WIDTH, 0.8 + ROW * len(rows))
    name_rows(axes, rows["target"].tolist())
    _draw_band(axes, rows["null_low"], rows["null_high"], BAND, "random directions, 95%")
    ends = rows["low"], rows["high"]
    intervals(axes, rows["cosine"], range(len(rows)), ends, VERMILLION, label="toxic latent, 95% over questions")
    axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.set_xlabel(f"cosine with latent {verdict['latent']}")
    axes.set_xlim(-1.02, 1.02)
    figure.legend(loc="outside upper center", ncols=2)
    caption = (
        f"The toxic latent {verdict['latent']} belongs to {verdict['belongs_to'] or 'none'}: cosines of its decoder "
        f"row with the base's directions ({positions}). Grey: random directions with the activations' covariance."
    )
    return PaperFigure("toxic", figure, caption)


def shift_dots(shift: pd.DataFrame) -> PaperFigure:
    """Share of every fine-tune's mean shift that lies in the span of the traits, compared with random spans.

    Args:
        shift: Rows of one hook.
    """
    once = shift.drop_duplicates("model").sort_values("share", ascending=False)
    names = once["model"].tolist()
    figure, ((axes,),) = canvas(PAGE_WIDTH, 0.8 + ROW * len(names))
    name_rows(axes, names)
    for (kind, rows), colour in zip(shift.groupby("null", sort=False), (BAND, _DARK_BAND), strict=False):
        null = rows.set_index("model").reindex(names)
        _draw_band(axes, null["null_low"], null["null_high"], colour, f"random spans, {kind}, 95%")
    axes.plot(once["share"], range(len(names)), "o", color=VERMILLION, label="span of the traits")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the squared norm of the mean shift")
    figure.legend(loc="outside upper center", ncols=3)
    caption = (
        "Mean shift in the personality space: share of every fine-tune's mean shift on the ranking prompts that lies "
        f"in the span of the {once['dimensions'].iloc[0]} trait directions of the base, compared with random spans of "
        "as many dimensions: isotropic, and with the activations' covariance."
    )
    return PaperFigure("shift", figure, caption)


def _draw_band(axes: Axes, low: Any, high: Any, colour: str, label: str) -> None:
    width = np.asarray(high, float) - np.asarray(low, float)
    axes.barh(range(len(width)), width, left=low, height=0.7, color=colour, label=label, zorder=1)
    axes.use_sticky_edges = False


def _valence_legend(figure: Figure, valences: set[str | None], marks: Mapping[str, str] | None = None) -> None:
    """Colours of the valences that there are, and the marks of models."""
    shown = [valence for valence in COLOURS if valence in valences]
    handles: list[Any] = [Patch(color=COLOURS[valence], label=valence or "no valence") for valence in shown]
    for model, marker in (marks or {}).items():
        face = INK if model == BASE else "white"
        handles.append(Line2D([], [], marker=marker, color=INK, markerfacecolor=face, linestyle="", label=model))
    legend(figure, handles, columns=len(handles))


def _known(valence: Any) -> str | None:
    """A table has NaN for what has no valence."""
    return valence if isinstance(valence, str) else None


def _colours(valences: Any) -> list[str]:
    return [COLOURS[_known(valence)] for valence in valences]
