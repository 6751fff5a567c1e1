"""The numbers to quote: what the chosen doses prevent, and whether that meets the target."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from experiments.output.tables import percent, percent_interval
from experiments.prevent.config import ANSWER_LOSS, FAMILIES, LOSS, LOSSES, MARKS, NONE, TRAINING_LOSS

_AT = {ANSWER_LOSS: "at equal loss of the model as it is used", TRAINING_LOSS: "at equal loss as training saw it"}


def summarise(rows: Sequence[Mapping[str, Any]], target: float, stop_loss: float) -> dict[str, Any]:
    """The base, the plain fine-tune, each family's chosen doses and their controls, at both ends, and the verdicts.

    The target counts as met where the chosen dose meets it with its loss down to the stop loss.

    Args:
        rows: What `finished_rows` returns.
        target: Share of harmful answers that is to be prevented.
        stop_loss: Nats a token.
    """
    kept = [row for row in rows if row["family"] == NONE or any(row[mark] for mark in MARKS.values())]
    met: dict[str, dict[str, bool]] = {loss: {} for loss in LOSSES}
    for loss, family in product(LOSSES, FAMILIES):
        row = _chosen(kept, family, loss)
        met[loss][family] = bool(row[loss] <= stop_loss and row["prevented"] >= target)
    shown = [{key: None if value != value else value for key, value in row.items()} for row in kept]
    return {"stop_loss": stop_loss, "target": target, "target_met_at_equal": met, "rows": shown}


def _chosen(rows: Sequence[Mapping[str, Any]], family: str, loss: str) -> Mapping[str, Any]:
    """A family's chosen dose where its loss is down."""
    [row] = [row for row in _marked(rows, family, loss) if row["control"] is None]
    return row


def _marked(rows: Sequence[Mapping[str, Any]], family: str, loss: str) -> list[Mapping[str, Any]]:
    """The same with its controls."""
    return [row for row in rows if row["end"] == LOSS and row["family"] == family and row[MARKS[loss]]]


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What each family's chosen doses prevent, in one sentence each."""
    return [_finding(summary, family, loss) for loss, family in product(LOSSES, FAMILIES)]


def _finding(summary: Mapping[str, Any], family: str, loss: str) -> str:
    row = _chosen(summary["rows"], family, loss)
    others = [row["prevented"] for row in _marked(summary["rows"], family, loss) if row["control"] is not None]
    ends = ", ".join(f"{100 * row[end]:+.1f}" for end in ("change_low", "change_high"))
    met = "met" if summary["target_met_at_equal"][loss][family] else "missed"
    return (
        f"{row['name']}, chosen {_AT[loss]}: {_share(row['prevented'])} of the plain fine-tune's harmful answers are "
        f"prevented ({100 * row['change']:+.1f} points [{ends}]; controls {', '.join(map(_share, others))}), and the "
        f"target of {summary['target']:.0%} is {met}. The model's loss as it is used is {row['answer_loss']:.3f} (stop "
        f"rule {summary['stop_loss']:g}), and {row['trained_harmful']:.0%} of its answers in the trained domains are "
        "harmful."
    )


def _share(prevented: float | None) -> str:
    return "an undefined share" if prevented is None else f"{prevented:z.0%}"


def stars(row: Mapping[str, Any]) -> str:
    """Marks of a dose that was chosen at equal loss (*), or at equal loss in training (+)."""
    return "*" * row["chosen"] + "+" * row["chosen_in_training"]


def table_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """One row a fine-tune and end."""
    return [_cells(row) for row in table.to_dict("records")]  # pyright: ignore[reportArgumentType]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Chosen doses are marked, their controls are not."""
    mark = stars(row) if pd.isna(row["control"]) else ""
    rates = {"helpful": "helpful", "incoherent": "incoherent", "trained domains": "trained_harmful"}
    return {
        "fine-tune": f"{row['name']} {mark}".rstrip(),
        "end": row["end"],
        "steps": str(int(row["step"])),
        "loss": f"{row['answer_loss']:.3f}",
        "in training": f"{row['training_loss']:.3f}",
        "harmful": percent(row["harmful"]),
        "95% interval": percent_interval(row),
        "prevented": "" if pd.isna(row["prevented"]) else _share(row["prevented"]),
        **{name: percent(row[rate]) for name, rate in rates.items()},
        "capability": percent(row["capability"]),
    }


NOTE = (
    "Doses chosen on the selection questions at equal loss (*) or equal loss in training (+); rates are of the "
    "reporting ones."
)
