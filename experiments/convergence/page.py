"""The page of `convergence`: what was found, figures, which are saved beside it, and tables."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.convergence import drawing
from experiments.convergence.config import FINE_TUNE, HARMLESS
from experiments.convergence.summary import between, finding
from experiments.names import BASE
from experiments.output import figures as paper

# What a chosen treatment is known by in the table of transfers.
_KEYS = ("contrast", "operation", "reach", "hook", "strength")


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any], hook: str) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: The file, replaced if it exists.
        tables: "cosines", "sweep", "transfer" and "adapters".
        summary: What `summarise` returns.
        hook: Where single cosines are shown: the run's hook.
    """
    with paper.style():
        figures = [
            drawing.cosine_matrices(tables["cosines"], hook),
            drawing.cosine_dots(tables["cosines"], hook),
            drawing.cosines_by_layer(tables["cosines"]),
            drawing.ablation_by_layer(tables["sweep"]),
            drawing.steering_by_layer(tables["sweep"]),
            drawing.treatment_dots(summary),
            drawing.transfer_matrices(tables["transfer"], summary["treatments"]),
        ]
    parts: list[paper.PaperFigure | str] = [f"<p>{escape(finding(summary))}</p>"]
    parts += [figure for figure in figures if figure is not None]
    for title, rows in (
        ("Untouched models", _model_rows(summary)),
        (f"Cosines at {hook} [95%] (by chance)", _cosine_rows(tables["cosines"], hook)),
        ("EM removed by the chosen treatments", _treatment_rows(summary)),
        ("EM removed in each model by each direction [95%]", _transfer_rows(tables["transfer"], summary["treatments"])),
        ("What rank-1 adapters write: absolute cosines (by chance)", _adapter_rows(tables["adapters"])),
    ):
        parts += [f"<h2>{escape(title)}</h2>", paper.table(pd.DataFrame(rows))] if rows else []
    paper.write_page(path, "Do fine-tunes misalign along one direction?", parts)


def _model_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    models = [{"name": BASE, "kind": "", **summary["base"]}, *summary["fine_tunes"]]
    return [
        {
            "model": row["name"],
            "kind": row["kind"],
            "harmful": f"{row['harmful']:.1%}",
            "95% interval": between(row),
            "helpful": f"{row['helpful']:.1%}",
            "incoherent": f"{row['incoherent']:.1%}",
        }
        for row in models
    ]


def _cosine_rows(cosines: pd.DataFrame, hook: str) -> list[dict[str, str]]:
    """One row a pair, one column a contrast."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in where(cosines, cosines["hook"] == hook).to_dict("records"):
        named = (row["relation"], row["first"], row["second"])
        shown = f"{row['cosine']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['chance']:.2f})"
        rows.setdefault(named, {})[row["contrast"]] = shown
    return [
        {"fine-tune": first, "with": relation, "of": second, **cells}
        for (relation, first, second), cells in rows.items()
    ]


def _treatment_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a treatment and whose direction is taken out."""
    rows = []
    for treatment in summary["treatments"]:
        named = {"treatment": _name(treatment)}
        rows += [named | {"direction": whose} | _removed(found) for whose, found, *_ in drawing.arms(treatment)]
    return rows


def _name(treatment: Mapping[str, Any]) -> str:
    return drawing.treatment_label(treatment).replace("\n", ", ")


def _removed(found: Mapping[str, Any]) -> dict[str, str]:
    shares = ("removed", "least", "most", "harmful", "helpful", "incoherent", "extra_incoherent")
    cells = {name.replace("_", " "): f"{found[name]:.1%}" for name in shares}
    removed = cells.pop("removed")
    return {"removed": removed, "95% interval": between(found), **cells, "pairs": str(found["pairs"])}


def _transfer_rows(transfer: pd.DataFrame, treatments: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a direction and model, one column a treatment; the single random directions are left out."""
    shown = where(transfer, transfer["kind"].isin([FINE_TUNE, HARMLESS]))
    names = {tuple(row[key] for key in _KEYS): _name(row) for row in treatments}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in shown.to_dict("records"):
        treatment = tuple(row[key] for key in _KEYS)
        cell = f"{row['removed']:.0%} [{row['removed_low']:.0%}, {row['removed_high']:.0%}]"
        rows.setdefault((row["direction"], row["model"]), {})[names[treatment]] = cell
    return [{"direction": direction, "model": model, **cells} for (direction, model), cells in rows.items()]


def _adapter_rows(adapters: pd.DataFrame) -> list[dict[str, str]]:
    """One row a block, one column a target."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in adapters.to_dict("records"):
        named = "" if pd.isna(row["latent"]) else f", latent {row['latent']}, rank {row['rank']}"
        cells = rows.setdefault((row["member"], row["hook"]), {})
        cells[row["target"]] = f"{row['cosine']:.2f} ({row['chance']:.2f}{named})"
    return [{"member": member, "hook": hook, **cells} for (member, hook), cells in rows.items()]
