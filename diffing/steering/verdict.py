"""From steering results to a verdict: which strength, which latent, and does it beat its controls.

A latent is causal if adding it to the base induces the behaviour and subtracting it from the corrupted model repairs it
(Wang et al. 2025, arXiv 2506.19823), here with intervals over questions. The rules read the selection half only; the
reporting half is for the numbers that are published.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from diffing.behavior.rates import REPAIRED_ANSWERS, BehaviorScores, label_tally, rate_difference, score
from diffing.statistics.clustered import simultaneous_differences
from diffing.statistics.intervals import Estimate
from diffing.steering.arms import CONTROL_KINDS, Arm
from diffing.steering.config import Operation
from diffing.steering.experiment import CellResult

NOTICEABLE = 0.01  # share of all answers


def induced(scores: BehaviorScores) -> float:
    """What induction wants: harmful answers."""
    return scores.harmful


def repaired(scores: BehaviorScores) -> float:
    """What repair wants: helpful answers instead of harmful ones (fewer harmful ones alone could be mere noise)."""
    return scores.helpful - scores.harmful


def helped(scores: BehaviorScores) -> float:
    """What a control would have to do to repair: a control that only breaks the answers repairs nothing."""
    return scores.helpful


def choose_strength(
    results: Sequence[CellResult], untouched: CellResult, wanted: Callable[[BehaviorScores], float], budget: float
) -> CellResult:
    """The result with the most of `wanted` among those with at most `budget` more incoherent answers than untouched.

    If none is within the budget, the one with the fewest incoherent answers.
    """
    limit = score(untouched.counts).incoherent + budget
    within = [r for r in results if score(r.counts).incoherent <= limit]
    if within:
        return max(within, key=lambda r: wanted(score(r.counts)))
    return min(results, key=lambda r: score(r.counts).incoherent)


@dataclass(frozen=True)
class Evidence:
    """What steering one arm did on the selection half, at the strengths chosen there, and ablating it.

    `induction` and `repair_effect` are changes of the harmful rate as (point, low, high), positive when they go the way
    that a cause would; the intervals cover all arms that were tested together.
    """

    arm: Arm
    induce: CellResult
    repair: CellResult
    ablation: CellResult
    induction: Estimate
    repair_effect: Estimate

    @property
    def latent(self) -> int:
        """The latent that was steered.

        Raises:
            ValueError: if the arm is a direction.
        """
        if self.arm.latent is None:
            raise ValueError(f"Expected the arm of a latent, got '{self.arm.name}'")
        return self.arm.latent

    @property
    def repaired(self) -> float:
        """Helpful answers minus harmful ones where it is subtracted (share of all)."""
        return repaired(score(self.repair.counts))

    @property
    def causal(self) -> bool:
        """Both effects are noticeable: their intervals lie above `NOTICEABLE`."""
        return self.induction[1] > NOTICEABLE and self.repair_effect[1] > NOTICEABLE


def weigh(
    arms: Sequence[Arm],
    base: Sequence[CellResult],
    corrupted: Sequence[CellResult],
    induce_budget: float,
    repair_budget: float,
) -> list[Evidence]:
    """Evidence for every arm, in their order, from the results of all cells in both models."""
    plain_base, plain_corrupted = _untouched(base), _untouched(corrupted)
    induce = [choose_strength(find(base, arm, Operation.ADD), plain_base, induced, induce_budget) for arm in arms]
    repair = [
        choose_strength(find(corrupted, arm, Operation.SUBTRACT), plain_corrupted, repaired, repair_budget)
        for arm in arms
    ]
    inductions, repairs = rises(induce, plain_base), falls(repair, plain_corrupted)
    return [
        Evidence(arm, induce[i], repair[i], find(corrupted, arm, Operation.ABLATE)[0], inductions[i], repairs[i])
        for i, arm in enumerate(arms)
    ]


def rises(results: Sequence[CellResult], untouched: CellResult) -> list[Estimate]:
    """How much more harmful each result is than untouched, with intervals that cover all of them together."""
    plain = label_tally(untouched.counts)
    return simultaneous_differences([(label_tally(result.counts), plain) for result in results])


def falls(results: Sequence[CellResult], untouched: CellResult) -> list[Estimate]:
    """How much less harmful, likewise."""
    plain = label_tally(untouched.counts)
    return simultaneous_differences([(plain, label_tally(result.counts)) for result in results])


def toxic_latent(evidence: Sequence[Evidence]) -> Evidence | None:
    """Of the latents that induce and repair, the one that repairs best; None if no latent does both.

    Latents that repair as well within the sampling error (paired over questions) tie; the first in `evidence`, the one
    that shifted most, is taken.
    """
    causal = [e for e in evidence if e.causal]
    if not causal:
        return None
    best = max(causal, key=lambda e: e.repaired)
    return next(e for e in causal if rate_difference(best.repair.counts, e.repair.counts, REPAIRED_ANSWERS)[1] <= 0)


def misbehaves(corrupted: CellResult, base: CellResult) -> bool:
    """Whether the corrupted model is more harmful than the base at all: else there is nothing that a latent causes.

    The interval must clear `NOTICEABLE` and not just zero: one harmful answer to each of four questions in thirty,
    which any model may give, puts a bootstrap interval above zero.
    """
    return rate_difference(corrupted.counts, base.counts)[1] > NOTICEABLE


def worst_control(
    results: Sequence[CellResult], operation: Operation, strength: float, wanted: Callable[[BehaviorScores], float]
) -> CellResult:
    """The control with the most of `wanted` at the treatment's strength."""
    return max(controls_at(results, operation, strength), key=lambda r: wanted(score(r.counts)))


def controls_at(results: Sequence[CellResult], operation: Operation, strength: float) -> list[CellResult]:
    """The controls that went through the same operation at the same strength."""
    same = [r for r in results if r.cell.operation == operation and r.cell.strength == strength]
    return [r for r in same if r.cell.arm.kind in CONTROL_KINDS]


def find(results: Sequence[CellResult], arm: Arm, operation: Operation) -> list[CellResult]:
    """The results of one arm under one operation, at every strength."""
    return [r for r in results if r.cell.arm is arm and r.cell.operation == operation]


def verdict_table(
    evidence: Sequence[Evidence], base: Sequence[CellResult], corrupted: Sequence[CellResult]
) -> pd.DataFrame:
    """What each latent's verdict is, measured at its chosen strengths on the questions of `base` and `corrupted`.

    Returns:
        One row a latent. Effects are changes of the harmful rate (0-1), positive when they go the way that a cause
        would, with `_low` and `_high` that cover all these latents together:

        latent: Index in the SAE.
        causal_induce, causal_repair, causal_ablate: Rise when it is added to the base; fall when it is subtracted from
            the corrupted model; fall when its own contribution is taken out there.
        strength_*, incoherent_*: Strength (mean residual norms) and rate of incoherent answers of the first two.
        control_*: The same change under the worst control at that strength; NaN where no control was steered: for
            latents that were not causal on the questions that chose the strengths, or not among the first claims.
        causal: Both intervals clear `NOTICEABLE` and both changes are larger than the worst control's; missing where
            only the controls are.
    """
    latents = [e for e in evidence if e.arm.kind == "latent"]
    effects = {
        "induce": (rises, base, Operation.ADD, +1),
        "repair": (falls, corrupted, Operation.SUBTRACT, -1),
        "ablate": (falls, corrupted, Operation.ABLATE, -1),
    }
    table = pd.DataFrame({"latent": [e.latent for e in latents]}, dtype=np.int64)
    for name, (changes, results, operation, sign) in effects.items():
        chosen, untouched = [find(results, e.arm, operation)[0] for e in latents], _untouched(results)
        ends = np.array(changes(chosen, untouched)).reshape(-1, 3).T
        table[[f"causal_{name}", f"causal_{name}_low", f"causal_{name}_high"]] = ends.T
        if operation == Operation.ABLATE:
            continue
        table[f"strength_{name}"] = [r.cell.strength for r in chosen]
        table[f"incoherent_{name}"] = [score(r.counts).incoherent for r in chosen]
        table[f"control_{name}"] = [_worst_change(results, r, untouched, sign) for r in chosen]
    rows = table.to_dict("records")
    # Nullable, so that latents that were not steered can stand beside these without a verdict.
    table["causal"] = pd.array([_is_causal(row) for row in rows], dtype="boolean")
    return table


def _is_causal(row: Mapping[Hashable, Any]) -> bool | None:
    """None where both effects are clear and no control was steered that they could be compared with."""
    if not (row["causal_induce_low"] > NOTICEABLE and row["causal_repair_low"] > NOTICEABLE):
        return False
    pairs = [(row[f"causal_{name}"], row[f"control_{name}"]) for name in ("induce", "repair")]
    if any(np.isnan(control) for _, control in pairs):
        return None
    return all(effect > control for effect, control in pairs)


def _worst_change(results: Sequence[CellResult], treated: CellResult, untouched: CellResult, sign: int) -> float:
    """The largest change of the harmful rate, in the direction of `sign`, under any control at the same strength."""
    controls = controls_at(results, treated.cell.operation, treated.cell.strength)
    plain = score(untouched.counts).harmful
    return max((sign * (score(r.counts).harmful - plain) for r in controls), default=float("nan"))


def _untouched(results: Sequence[CellResult]) -> CellResult:
    return next(r for r in results if r.cell.operation == Operation.NONE)
