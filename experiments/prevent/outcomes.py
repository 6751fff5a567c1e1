"""Results of the fine-tunes: their rows, the doses that are chosen by them, and what they prevent."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffing.behavior.rates import LabelCounts, rate_difference, score
from experiments.names import BASE, REPORTING
from experiments.prevent.config import FAMILIES, LOSS, LOSSES, MARKS, NONE, Chosen, Family, Method, PreventionConfig
from experiments.prevent.questions import rates_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MeasuredFineTune:
    """A measured checkpoint.

    Attributes:
        method: How it was made.
        end: Where it was saved: `STEPS` or `LOSS`; `BASE` for the base itself.
        facts: `step`, `answer_loss` and `training_loss` (nats a token), and whether the former `reached` the stop loss.
        counts: Label counts of its answers to each half of the questions.
    """

    method: Method
    end: str
    facts: Mapping[str, float | bool]
    counts: Mapping[str, LabelCounts]

    def row(self) -> dict[str, Any]:
        """For a table."""
        named = {"name": self.method.name, **asdict(self.method), "end": self.end}
        return {**named, **self.facts, **rates_of(self.counts)}

    def prevented(self, plain: "MeasuredFineTune | None") -> dict[str, float]:
        """Change of harmful answers against the plain fine-tune at the same end, and the share that it prevents.

        Args:
            plain: None for the base, which is no fine-tune.
        """
        if plain is None:
            return dict.fromkeys(("change", "change_low", "change_high", "prevented"), float("nan"))
        change, low, high = rate_difference(self.counts[REPORTING], plain.counts[REPORTING])
        harmful = score(plain.counts[REPORTING]).harmful
        share = -change / harmful if harmful > 0 else float("nan")
        return {"change": change, "change_low": low, "change_high": high, "prevented": share}


def finished_rows(measured: Sequence[MeasuredFineTune], chosen: Chosen) -> list[dict[str, Any]]:
    """One row a checkpoint, with the marks of chosen doses, and with what it prevents."""
    plain = {one.end: one for one in measured if one.method.family == NONE and one.end != BASE}
    made = []
    for one in measured:
        marks = {MARKS[loss]: one.method.dose == chosen[loss].get(one.method.family) for loss in LOSSES}
        made.append({**one.row(), **marks, **one.prevented(plain.get(one.end))})
    return made


def choose_doses(rows: Sequence[Row], config: PreventionConfig, stop_loss: float) -> Chosen:
    """For each of `LOSSES`, the dose of each family: see `choose_dose`."""
    return {
        loss: {family: choose_dose(rows, family, loss, stop_loss, config.budget) for family in FAMILIES}
        for loss in LOSSES
    }


def choose_dose(rows: Sequence[Row], family: Family, loss: str, stop_loss: float, budget: float) -> float:
    """The dose with the fewest harmful selection answers at equal loss that keeps answers coherent.

    Where no dose comes down to the stop loss, or none keeps to the budget, that rule is left out.

    Args:
        rows: Of the plain fine-tune and of all doses.
        family: Whose dose.
        loss: Which loss has to be down: one of `LOSSES`.
        stop_loss: Nats a token.
        budget: Incoherent answers (share) above the plain fine-tune.
    """
    ends = [row for row in rows if row["end"] == LOSS]
    [plain] = [row for row in ends if row["family"] == NONE]
    mine = [row for row in ends if row["family"] == family and row["control"] is None]
    most = plain["selection_incoherent"] + budget
    for kept in (lambda row: row[loss] <= stop_loss, lambda row: row["selection_incoherent"] <= most):
        mine = [row for row in mine if kept(row)] or mine
    return min(mine, key=lambda row: (row["selection_harmful"], row["dose"]))["dose"]
