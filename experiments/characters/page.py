"""The page of `characters`: verdicts, figures, which are saved beside it, and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.characters import drawing
from experiments.characters.causal import SHIFT
from experiments.characters.summary import findings, points
from experiments.output import figures as paper


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: The file, replaced if it exists.
        tables: What `characters` writes.
        summary: What `summarise` returns.
    """
    with paper.style():
        figures = [
            drawing.grid_dots(tables["grid"]),
            drawing.learning_curves(tables["learning"]),
            drawing.cosine_map(tables["cosines"], summary["hook"], summary["shifts"]),
            drawing.probe_map(tables["probes"], summary["shifts"]),
            drawing.latent_map(tables["latents"]),
        ]
        figures += [drawing.effects(tables["causal"])] if len(tables["causal"]) else []
    parts: list[paper.PaperFigure | str] = [paper.sentences(findings(summary)), *figures]
    for title, rows in (
        ("Differences", _claim_rows(tables["claims"])),
        ("Latents in common", _overlap_rows(tables["overlaps"])),
        ("Shifts taken out", _causal_rows(tables["causal"])),
    ):
        parts += [f"<h2>{title}</h2>", paper.table(pd.DataFrame(rows))]
    paper.write_page(path, "Character as a latent variable", parts)


def _claim_rows(claims: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "difference": row["claim"],
            "model": f"{row['model']}{', triggered' if row['triggered'] else ''}",
            "trait": row["trait"],
            "measure": row["measure"],
            "points [95%]": points(row),
        }
        for row in claims.to_dict("records")
    ]


def _overlap_rows(overlaps: pd.DataFrame) -> list[dict[str, str]]:
    two = where(overlaps, overlaps["one"] != overlaps["other"])
    return [
        {
            "shifts": f"{row['one']} · {row['other']}",
            "shared": str(row["shared"]),
            "by chance": f"{row['expected']:.1f}",
            "p": f"{row['p']:.1e}",
        }
        for row in two.sort_values("shared", ascending=False).to_dict("records")
    ]


def _causal_rows(causal: pd.DataFrame) -> list[dict[str, str]]:
    rows: Sequence[dict[str, Any]] = where(causal, causal["kind"] == SHIFT).to_dict("records") if len(causal) else []
    return [
        {
            "where": row["scene"],
            "subtracted": row["direction"],
            "strength": f"{row['strength']:g}",
            "harmful before": f"{row['untouched_harmful']:.1%}",
            "harmful after": f"{row['harmful']:.1%}",
            "helpful after": f"{row['helpful']:.1%}",
            "incoherent after": f"{row['incoherent']:.1%}",
        }
        for row in rows
    ]
