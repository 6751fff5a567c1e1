"""The tables of `characters` for terminal and page."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.tables import records, where
from experiments.characters.causal import SHIFT
from experiments.characters.summary import points
from experiments.output.tables import Row, Section, percent


def sections(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[Section]:
    """The differences that the verdicts rest on, all others, shared latents, and what subtracting shifts does."""
    verdicts = [row for part in ("order", "activation", "capability") for row in summary[part]["rows"]]
    return [
        Section("Differences", claim_rows(verdicts)),
        Section("Other differences", _others(tables["claims"], verdicts), printed=False),
        Section("Latents in common", _overlap_rows(tables["overlaps"]), printed=False),
        Section("Shifts subtracted", _causal_rows(tables["causal"]), printed=False),
    ]


def claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Differences with their intervals."""
    return [
        {
            "difference": row["claim"],
            "model": f"{row['model']}{', triggered' if row['triggered'] else ''}",
            "trait": row["trait"],
            "measure": row["measure"],
            "points [95%]": points(row),
        }
        for row in claims
    ]


def _others(claims: pd.DataFrame, shown: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The claims that no verdict rests on."""
    keys = ("claim", "model", "triggered", "trait", "measure")
    known = {tuple(row[key] for key in keys) for row in shown}
    return claim_rows([row for row in records(claims) if tuple(row[key] for key in keys) not in known])


def _overlap_rows(overlaps: pd.DataFrame) -> list[Row]:
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


def _causal_rows(causal: pd.DataFrame) -> list[Row]:
    return [
        {
            "where": row["scene"],
            "subtracted": row["direction"],
            "strength": f"{row['strength']:g}",
            "harmful before": percent(row["untouched_harmful"]),
            "harmful after": percent(row["harmful"]),
            "helpful after": percent(row["helpful"]),
            "incoherent after": percent(row["incoherent"]),
        }
        for row in records(causal)
        if row["kind"] == SHIFT
    ]
