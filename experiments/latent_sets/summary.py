"""Each arm's best dose in both models, and the controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.steering.arms import CONTROL_KINDS
from experiments.frame.experiment import Measured
from experiments.names import BASE, CORRUPTED
from experiments.run.config import RunConfig

COLUMNS = ("arm", "cosine with direction", "added to base: harmful", "incoherent", "repaired: harmful", "helpful")


def summarise(config: RunConfig, measured: Measured) -> dict[str, Any]:
    """For each arm its latents, its cosine with the dense direction, and its best dose in each model."""
    assert config.steering is not None
    arms, members, table = measured.facts.arms, measured.facts.members, measured.tables["dose_response"]
    budgets = {BASE: config.steering.induce_budget, CORRUPTED: config.steering.repair_budget}
    dense = arms[-1].unit.double()
    found: dict[str, Any] = {}
    for arm in arms:
        best = {role: _best_dose(table, arm.name, role, budget) for role, budget in budgets.items()}
        cosine = float(arm.unit.double() @ dense)
        found[arm.name] = {"latents": members.get(arm.name), "cosine_direction": cosine, **best}
    return {"arms": found, "controls": {role: _worst(table, role) for role in budgets}}


def _best_dose(table: pd.DataFrame, arm: str, role: str, budget: float) -> dict[str, float] | None:
    """Rates at the dose with the largest wanted effect within the coherence budget; None if every dose exceeds it."""
    here = [row for row in table.to_dict("records") if row["model"] == role]
    limit = budget + next(row["incoherent"] for row in here if row["operation"] == "none")
    rows = [row for row in here if row["arm"] == arm and row["incoherent"] <= limit]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["harmful"] if role == BASE else row["helpful"] - row["harmful"])
    return {name: float(best[name]) for name in ("strength", "harmful", "low", "high", "helpful", "incoherent")}


def _worst(table: pd.DataFrame, role: str) -> dict[str, float]:
    """The strongest effect that any control has at any dose, whatever it costs in coherence, and the mean effect."""
    wanted = "harmful" if role == BASE else "helpful"
    rows = [row for row in table.to_dict("records") if row["model"] == role]
    rates = [row[wanted] for row in rows if row["kind"] in CONTROL_KINDS]
    return {f"highest {wanted}": max(rates), f"mean {wanted}": sum(rates) / len(rates)}


def best_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row an arm."""
    rows = []
    for name, arm in summary["arms"].items():
        added, repaired = _cells(arm[BASE], ("harmful", "incoherent")), _cells(arm[CORRUPTED], ("harmful", "helpful"))
        cells = (name, f"{arm['cosine_direction']:.2f}", *added, *repaired)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def _cells(rates: Mapping[str, float] | None, names: Sequence[str]) -> list[str]:
    if rates is None:
        return ["over budget"] * len(names)
    first = f"{rates[names[0]]:.1%} [{rates['low']:.1%}, {rates['high']:.1%}] at {rates['strength']:g}"
    return [first, *(f"{rates[name]:.1%}" for name in names[1:])]
