"""The page of `guardrails`: its figures, which are saved beside it, and its tables."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.guardrails import drawing
from experiments.guardrails.summary import ablation_name, between, finding, sparing_cells
from experiments.names import SVV
from experiments.output import figures as paper


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: The file, replaced if it exists.
        tables: "doses", "ablations", "fine_tunes" and "projections".
        summary: What `summarise` returns.
    """
    with paper.style():
        figures = [
            drawing.dose_response(tables["doses"]),
            drawing.trait_doses(tables["doses"]),
            drawing.before_and_after(tables["fine_tunes"]),
            drawing.arm_dots(summary),
            drawing.sparing_dots(summary),
            drawing.ablations(summary),
            drawing.arm_ablations(summary),
            drawing.projections(tables["projections"]),
        ]
    parts = [f"<p>{escape(finding(summary))}</p>", *(figure for figure in figures if figure is not None)]
    for title, rows in (
        ("Each arm in all misaligned fine-tunes", _arm_rows(summary)),
        ("Amplified and capped, sparing the base", sparing_cells(summary)),
        ("The SVV ablated, as chosen on the selection questions", _ablation_rows(summary)),
        ("Each arm ablated at all layers", _arm_ablation_rows(summary)),
        ("Fine-tunes", _fine_tune_rows(tables["fine_tunes"])),
    ):
        parts += [f"<h2>{title}</h2>", paper.table(pd.DataFrame(rows))]
    paper.write_page(path, "Are directions of social valence guardrails?", parts)


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
