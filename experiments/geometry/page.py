"""The page of the personality space: its figures, which are saved beside it, and the agreement of all models."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.geometry import drawing
from experiments.geometry.model_geometry import Geometry
from experiments.geometry.spaces import Spaces
from experiments.names import BASE
from experiments.output import figures as paper

_GENERATOR = "the generator"


def write_page(
    path: Path,
    spaces: Spaces,
    found: Mapping[str, Geometry],
    tables: Mapping[str, pd.DataFrame],
    summary: Mapping[str, Any],
) -> None:
    """Writes the page, and its figures into the folder `figures` beside it.

    Args:
        path: HTML file, replaced if it exists.
        spaces: What was compared.
        found: Every model's geometry.
        tables: Those of `geometry`.
        summary: That of `geometry`.
    """
    compared = spaces.others[0].name
    with paper.style():
        figures = [
            drawing.cosine_matrices(found, compared),
            drawing.trees(found, compared, spaces.valence),
            drawing.trait_maps(tables["traits"], {name: one.map.explained for name, one in found.items()}, compared),
            drawing.valence_loadings(tables["traits"], compared),
            _pairs(spaces, tables["cosines"], compared, summary),
            drawing.layer_lines(tables, compared),
            *_of_models(tables, summary),
        ]
    paper.write_page(path, "Personality space", [*_numbers(summary), *figures])


def _pairs(spaces: Spaces, cosines: pd.DataFrame, compared: str, summary: Mapping[str, Any]) -> paper.PaperFigure:
    """Every pair of traits in the base, in the other model, and in the generator where it is known."""
    values = ["cosine", "low", "high"]
    by_space = cosines.pivot(index=["trait", "other"], columns="model", values=values)
    found = {compared: _headline(summary, "stability")[compared]}
    if spaces.generator is not None:
        for value in values:
            by_space[value, _GENERATOR] = [float(spaces.generator.loc[pair]) for pair in by_space.index]
        found[_GENERATOR] = _headline(summary, "generator")[BASE]
    return drawing.stability_scatter(by_space, found)


def _of_models(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[paper.PaperFigure]:
    """What has a row a model, or a toxic latent."""
    at, hook = summary["positions"], summary["hook"]
    nulls, toxic, shift = (tables[name] for name in ("nulls", "toxic", "shift"))
    chance = where(nulls, (nulls["positions"] == at) & (nulls["hook"] == hook) & (nulls["measure"] == "rsa"))
    figures = [drawing.model_dots(_headline(summary, "stability"), chance)]
    if len(toxic):
        figures.append(drawing.toxic_dots(toxic, summary["toxic_latent"][at], at))
    if len(shift) and len(here := where(shift, shift["hook"] == hook)):
        figures.append(drawing.shift_dots(here))
    return figures


def _numbers(summary: Mapping[str, Any]) -> list[str]:
    """Agreement of every model with the base, as a table."""
    columns = ("rsa", "low", "high", "p", "cka_unbiased", "cosine", "aligned_cosine", "overlap", "largest_angle")
    found = _headline(summary, "stability")
    rows = {model: {name: f"{row[name]:.3g}" for name in columns} for model, row in found.items()}
    at = f"{len(summary['traits'])} traits; {escape(summary['positions'])} at {escape(summary['hook'])}"
    sentence = f"<p>{at}. Every model against the base; intervals are 95% over traits.</p>"
    return [sentence, paper.table(pd.DataFrame.from_dict(rows, orient="index"), index=True)]


def _headline(summary: Mapping[str, Any], kind: str) -> dict[str, Mapping[str, Any]]:
    """Model -> its row at the page's positions and hook."""
    place = (summary["positions"], summary["hook"])
    return {row["model"]: row for row in summary[kind] if (row["positions"], row["hook"]) == place}
