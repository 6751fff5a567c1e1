"""How many latents are causal, and the verdicts to quote."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.output.tables import Row

LISTED = 20
VERDICTS = {True: "yes", False: "no", None: "no controls"}
_EFFECTS = ("induce", "repair", "ablate")
_COLUMNS = [
    *(f"causal_{name}{end}" for name in _EFFECTS for end in ("", "_low", "_high")),
    *("control_induce", "control_repair"),
]


def summarise(ranking: pd.DataFrame) -> dict[str, Any]:
    """What the verdict columns of the ranking say.

    Args:
        ranking: Its table (see `verdict_table` for the columns).

    Returns:
        Numbers of latents: `steered`, `causal`, and `without_controls` (both effects are clear, but no control was
        steered at their strengths); `verdicts` on the causal latents and, of the others, on those with the largest
        effects, `LISTED` in all: `rank`, `latent`, `causal` (None: no controls) and the columns of the table.
    """
    steered = steered_rows(ranking)
    found = [row["causal"] for row in steered]
    listed = sorted(steered, key=lambda row: (row["causal"] is not True, -row["causal_induce"] - row["causal_repair"]))
    return {
        "steered": len(steered),
        "causal": found.count(True),
        "without_controls": found.count(None),
        "verdicts": listed[:LISTED],
    }


def steered_rows(ranking: pd.DataFrame) -> list[dict[str, Any]]:
    """The latents that were steered, by rank; what is missing is None."""
    rows = ranking.dropna(subset=["causal_induce"]).sort_values("rank").to_dict("records")
    names = ("rank", "latent", "causal", *_COLUMNS)
    return [{name: None if pd.isna(row[name]) else row[name] for name in names} for row in rows]


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What was found."""
    found = [
        f"{summary['causal']} of {summary['steered']} latents are causal: change of the harmful rate on questions that "
        "chose nothing, intervals that cover all of them together."
    ]
    if unclear := summary["without_controls"]:
        found.append(f"Latents with clear effects that were not compared with controls: {unclear}.")
    return found


def verdict_rows(summary: Mapping[str, Any]) -> Sequence[Row]:
    """One row a listed latent."""
    return [
        {
            "rank": str(row["rank"]),
            "latent": str(row["latent"]),
            "causal": VERDICTS[row["causal"]],
            "added to base": _effect(row, "induce"),
            "worst control (added)": _control(row, "induce"),
            "subtracted": _effect(row, "repair"),
            "worst control (subtracted)": _control(row, "repair"),
            "ablated": _effect(row, "ablate"),
        }
        for row in summary["verdicts"]
    ]


def _effect(row: Mapping[str, Any], name: str) -> str:
    return f"{row[f'causal_{name}']:+.1%} [{row[f'causal_{name}_low']:+.1%}, {row[f'causal_{name}_high']:+.1%}]"


def _control(row: Mapping[str, Any], name: str) -> str:
    control = row[f"control_{name}"]
    return "" if control is None else f"{control:+.1%}"
