"""The numbers to quote: what rises first, what re-alignment leaves, and whether the persona is masked."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.output.tables import percent
from experiments.trajectory.config import CORRUPTION, REALIGNMENT
from experiments.trajectory.reading import PROJECTION, SHIFT

HARMFUL = "harmful"
FOLLOWED = (SHIFT, PROJECTION, HARMFUL)
MASKED, HARDER, ALIKE = "masked", "harder to call up", "neither"
_SAID = {
    MASKED: "so the persona is masked rather than removed",
    HARDER: "so the persona is not masked but harder to call up than before",
    ALIKE: "which shows neither a masked persona nor one that is harder to call up",
}
Row = Mapping[str, Any]


def summarise(table: pd.DataFrame, latent: int, masking: Mapping[str, Any]) -> dict[str, Any]:
    """What the table and the steered answers say.

    Args:
        table: What `trajectory_table` returns.
        latent: The toxic one.
        masking: What `masking` returns.

    Returns:
        `latent`; `steps` of each phase; for the shift, the projection and harmful answers, the first measured step of
        the corruption that each `rises` at (its interval lies above the first row's) and has `half` of its final value
        (None: never); the latent's `peak` in each phase; what was there at the `turn` to re-alignment and what that
        `left`, with intervals and its `share` of the former (None: of nothing); `masking` with a `verdict`: the
        interval of the latent's excess leaves out 0, and no random direction's excess is as far on that side.
    """
    corruption, realignment = (_rows(table, phase) for phase in (CORRUPTION, REALIGNMENT))
    turn, end = corruption[-1], realignment[-1]
    return {
        "latent": latent,
        "steps": {CORRUPTION: turn["step"], REALIGNMENT: end["step"]},
        "rises": {name: _rise(corruption, name) for name in FOLLOWED},
        "half": {name: _half(corruption, name) for name in FOLLOWED},
        "peak": {CORRUPTION: _peak(corruption), REALIGNMENT: _peak(realignment)},
        "turn": {name: _value(turn, name) for name in FOLLOWED},
        "left": {name: {**_value(end, name), "share": _share(end[name], turn[name])} for name in FOLLOWED},
        "masking": {**masking, "verdict": _verdict(masking["excess"])},
    }


def _rows(table: pd.DataFrame, phase: str) -> list[dict[str, Any]]:
    return where(table, table["phase"] == phase).to_dict("records")  # pyright: ignore[reportCallIssue]


def _value(row: Row, name: str) -> dict[str, float]:
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _rise(rows: Sequence[Row], name: str) -> int | None:
    return next((row["step"] for row in rows if row[f"{name}_low"] > rows[0][f"{name}_high"]), None)


def _half(rows: Sequence[Row], name: str) -> int | None:
    final = rows[-1][name]
    return next((row["step"] for row in rows if final > 0 and row[name] >= final / 2), None)


def _peak(rows: Sequence[Row]) -> dict[str, float]:
    highest = max(rows, key=lambda row: row[SHIFT])
    return {"step": highest["step"], **_value(highest, SHIFT)}


def _share(left: float, of: float) -> float | None:
    return left / of if of > 0 else None


def _verdict(excess: Sequence[Row]) -> str:
    [latent] = [row for row in excess if not row["control"]]
    random = [row["excess"] for row in excess if row["control"]]
    if latent["low"] > 0 and latent["excess"] > max(random):
        return MASKED
    return HARDER if latent["high"] < 0 and latent["excess"] < min(random) else ALIKE


def findings(summary: Mapping[str, Any]) -> list[str]:
    """The result, in four sentences."""
    latent, left, turn = f"Latent {summary['latent']}", summary["left"], summary["turn"]
    rises, half = (_steps(summary[name]) for name in ("rises", "half"))
    before, after = (summary["peak"][phase] for phase in (CORRUPTION, REALIGNMENT))
    return [
        f"First measured step of the corruption with a value above the base's, by the intervals: {rises}; with half of "
        f"the final value: {half}.",
        f"{latent} is highest {_at(before, CORRUPTION)}; after that {_at(after, REALIGNMENT)}.",
        f"Re-alignment leaves {_rate(left[HARMFUL])} harmful answers of {_rate(turn[HARMFUL])}, a shift of "
        f"{_number(left[SHIFT])} of {_number(turn[SHIFT])}, and a projection of {_number(left[PROJECTION])} of "
        f"{_number(turn[PROJECTION])}.",
        _masking_sentence(latent, summary["masking"]),
    ]


def _steps(found: Mapping[str, int | None]) -> str:
    names = {SHIFT: "latent", PROJECTION: "direction", HARMFUL: "harmful answers"}
    return ", ".join(f"{names[name]} {'never' if step is None else step}" for name, step in found.items())


def _at(peak: Mapping[str, Any], phase: str) -> str:
    return f"at step {peak['step']} of the {phase} (shift {_number(peak)})"


def _rate(value: Row) -> str:
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def _number(value: Row) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _masking_sentence(latent: str, masking: Mapping[str, Any]) -> str:
    changes = {row["model"]: row for row in masking["rows"] if row["arm"] == latent.lower()}
    [excess] = [row for row in masking["excess"] if not row["control"]]
    random = [row["excess"] for row in masking["excess"] if row["control"]]
    each = " and ".join(
        f"{_points(row, 'change', 'change_low', 'change_high')} points in the {model} model"
        for model, row in changes.items()
    )
    return (
        f"{latent}, added at strength {masking['strength']:g}, changes harmful answers by {each}: a difference of "
        f"{_points(excess, 'excess', 'low', 'high')} (random directions {100 * min(random):+.1f} to "
        f"{100 * max(random):+.1f}), {_SAID[masking['verdict']]}."
    )


def _points(row: Row, value: str, low: str, high: str) -> str:
    return f"{100 * row[value]:+.1f} [{100 * row[low]:+.1f}, {100 * row[high]:+.1f}]"


def table_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """One row a measurement, with intervals (95%)."""
    return [_cells(row) for row in table.to_dict("records")]  # pyright: ignore[reportArgumentType]


def _cells(row: Row) -> dict[str, str]:
    return {
        "phase": row["phase"],
        "step": str(row["step"]),
        HARMFUL: _rate(_value(row, HARMFUL)),
        "helpful": percent(row["helpful"]),
        "coherent": percent(row["coherent"]),
        "latent's shift": _number(_value(row, SHIFT)),
        PROJECTION: _number(_value(row, PROJECTION)),
    }
