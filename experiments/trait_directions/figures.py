"""The figures of `trait-directions`: where the traits separate, and how reliable their directions are."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from diffing.tables import where
from experiments.names import BASE
from experiments.output.colours import BLUE, GREEN, MUTED, ORANGE, VERMILLION
from experiments.output.figures import PAGE_WIDTH, ROW, PaperFigure, block_of, canvas, intervals, name_rows

# Colour, marker, and how far below its row it is drawn.
_PROBES = {"difference_of_means": (BLUE, "o", -0.15), "logistic": (ORANGE, "s", 0.15)}


def figures(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[PaperFigure]:
    """Of the base's traits.

    Args:
        tables: "layers", "probes" and "reliability" of all models.
        summary: With the best hook at all positions.
    """
    best = {at: found["hook"] for at, found in summary["models"][BASE]["positions"].items()}
    layers, probes, reliability = (
        where(tables[name], tables[name]["model"] == BASE) for name in ("layers", "probes", "reliability")
    )
    return [layer_sweep(layers, best), trait_dots(probes, reliability, best)]


def layer_sweep(layers: pd.DataFrame, best: Mapping[str, str]) -> PaperFigure:
    """Separation on held-out questions after every block, a panel for each positions: traits, and their mean."""
    figure, (panels,) = canvas(PAGE_WIDTH, 2.4, 1, len(best), sharey=True)
    for axes, (at, hook) in zip(panels, best.items(), strict=True):
        here = where(layers, layers["positions"] == at)
        table = here.pivot(index="hook", columns="trait", values="separation")
        table = table.reindex(index=sorted(table.index, key=block_of))
        blocks = [block_of(name) for name in table.index]
        axes.plot(blocks, table.to_numpy(), color=MUTED, linewidth=0.5)
        axes.plot(blocks, table.mean(axis=1), color=BLUE, marker="o")
        axes.axvline(block_of(hook), color=VERMILLION, linewidth=0.8, linestyle="--")
        axes.set_title(at)
        axes.set_xlabel("after block")
    panels[0].set_ylabel("separation (Cohen's d)")
    caption = (
        "How far the base's traits (grey) separate held-out questions of both poles after every block, and their mean "
        "(blue). Dashed: the block chosen by that mean on other questions."
    )
    return PaperFigure("layers", figure, caption)


def trait_dots(probes: pd.DataFrame, reliability: pd.DataFrame, best: Mapping[str, str]) -> PaperFigure:
    """At the chosen layers: AUC of both probes, and split-half reliability of every trait's direction."""
    traits = list(dict.fromkeys(reliability["trait"]))
    figure, panels = canvas(PAGE_WIDTH, 0.9 + 2 * ROW * len(traits), 2, len(best), sharey=True, sharex="row")
    for column, (at, hook) in enumerate(best.items()):
        for probe, (colour, marker, lower) in _PROBES.items():
            kept = (probes["probe"] == probe) & (probes["positions"] == at) & (probes["hook"] == hook)
            found = where(probes, kept)
            _dots(panels[0, column], traits, found, ("auc", "auc_low", "auc_high"), colour, marker, lower)
        found = where(reliability, (reliability["positions"] == at) & (reliability["hook"] == hook))
        _dots(panels[1, column], traits, found, ("full", "full_low", "full_high"), GREEN, "o", 0)
        panels[0, column].set_title(f"{at}\nblock {block_of(hook)}")
        panels[0, column].set_xlabel("AUC, held out")
        panels[1, column].set_xlabel("reliability")
        for axes in panels[:, column]:
            name_rows(axes, traits)
            axes.grid(axis="y")
    caption = (
        "The base at the chosen layers. Above: AUC of probes on questions that they were not fitted on (blue: "
        "difference of means, orange squares: logistic). Below: split-half reliability of the whole direction. Bars: "
        "95%."
    )
    return PaperFigure("traits", figure, caption)


def _dots(
    axes: Axes,
    traits: Sequence[str],
    rows: pd.DataFrame,
    columns: tuple[str, str, str],
    colour: str,
    marker: str,
    lower: float,
) -> None:
    """A value with its interval for each trait; traits without directions stay empty."""
    places = [traits.index(trait) + lower for trait in rows["trait"]]
    value, low, high = (rows[column] for column in columns)
    intervals(axes, value, places, (low, high), colour, marker=marker)
