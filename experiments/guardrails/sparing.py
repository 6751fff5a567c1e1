"""Must a guardrail cost what the model can do? Amplification and capping, at doses that spare the base.

Amplification moves every position, also those that need it not. Capping (Lu et al. 2026, arXiv 2601.10387) raises the
projection only where it is below a floor. Both get the strongest dose that leaves the base as it is: on the selection
questions, no more than the budget of incoherent answers in either model, and as few helpful ones lost in the base (our
rule). Capability and fine-tunes are then measured, never chosen by.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from activations.checkpoint import Checkpoint
from diffing.behavior.rates import score
from diffing.personality.valence import PC1, SVV
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from diffing.steering.verdict import repaired
from experiments.frame.trials import NamedDirection, TreatmentOutcome, Trials
from experiments.guardrails.config import GuardrailsConfig
from experiments.guardrails.vectors import PERSONA, Arms
from experiments.names import BASE, CORRUPTED, EVIL

OPERATIONS = Operation.ADD, Operation.CAP
# Arms whose prosocial pole is known beforehand, and which way it lies.
POLES = {SVV: 1, PC1: 1, EVIL: -1, PERSONA: -1}
Pair = tuple[NamedDirection, Treatment]


def prosocial(arms: Arms) -> list[NamedDirection]:
    """The arms that point to the prosocial pole; those that point away, turned round."""
    found = []
    for arm in arms.treated:
        if sign := POLES.get(arm.name):
            units = {hook: sign * unit for hook, unit in arm.units.items()}
            found.append(NamedDirection(arm.name if sign > 0 else f"-{arm.name}", arm.contrast, arm.kind, units))
    return found


def sparing_doses(trials: Trials, corrupted: Checkpoint, arms: Arms, config: GuardrailsConfig) -> list[Pair]:
    """For each prosocial arm and operation the hook and dose that repair most of those that spare both models.

    Args:
        trials: Gives base, hooks and selection questions.
        corrupted: The model that is repaired.
        arms: The vectors.
        config: Doses, and the budget of extra incoherent answers in either model, and of helpful ones lost in the base.

    Returns:
        The chosen doses, then every random direction with the SVV's of each operation.
    """
    lab = trials.lab
    doses = dict(zip(OPERATIONS, (config.strengths, config.floors), strict=True))
    pairs = [
        (source, Treatment(operation, Reach.ONE, hook, dose))
        for source in prosocial(arms)
        for operation in OPERATIONS
        for hook in lab.hooks
        for dose in doses[operation]
    ]
    tried = [trials.treat(model, lab.selection, pairs) for model in (lab.base, corrupted)]
    best: dict[tuple[str, Operation], tuple[float, Pair]] = {}
    for pair, in_base, in_corrupted in zip(pairs, *tried, strict=True):
        if not spares(in_base, in_corrupted, config.budget):
            continue
        key, value = (pair[0].name, pair[1].operation), repaired(in_corrupted.scores)
        if key not in best or value > best[key][0]:
            best[key] = value, pair
    chosen = [pair for _, pair in best.values()]
    own = [treatment for source, treatment in chosen if source.name == SVV]
    return [*chosen, *((control, treatment) for treatment in own for control in arms.controls)]


def spares(in_base: TreatmentOutcome, in_corrupted: TreatmentOutcome, budget: float) -> bool:
    """Whether neither model becomes more incoherent than the budget, nor the base less helpful."""
    lost = score(in_base.plain).helpful - in_base.scores.helpful
    return max(in_base.extra_incoherent, in_corrupted.extra_incoherent, lost) <= budget


def sparing_rows(
    outcomes: Sequence[TreatmentOutcome], exact: Sequence[TreatmentOutcome], kinds: Mapping[str, str]
) -> pd.DataFrame:
    """A row for each outcome.

    Args:
        outcomes: Of base, corrupted model and fine-tunes.
        exact: The same treatments of base and corrupted model on the capability questions, if there are any.
        kinds: Fine-tune -> kind.
    """
    capability = {(one.model, one.source.name, one.treatment): one.scores.helpful for one in exact}
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        found = capability.get((outcome.model, outcome.source.name, outcome.treatment), float("nan"))
        before = {f"untouched_{name}": getattr(score(outcome.plain), name) for name in ("harmful", "helpful")}
        rows.append(outcome.row() | {"tune": kinds.get(outcome.model, ""), "capability": found, **before})
    return pd.DataFrame(rows)


def summarise_sparing(rows: pd.DataFrame, harmful: float, helpful: float) -> list[dict[str, Any]]:
    """By arm and operation: dose, rates of base and corrupted model, and of all fine-tunes.

    Args:
        rows: What `sparing_rows` returns.
        harmful, helpful: A fine-tune below the one and not below the other reaches the target.
    """
    if rows.empty:  # no dose spares the base
        return []
    found = []
    for _, here in rows.groupby(["direction", "operation"], sort=False):
        first = here.iloc[0]
        models = {model: here.loc[here["model"] == model].to_dict("records") for model in (BASE, CORRUPTED)}
        tuned = here.loc[~here["model"].isin(list(models))]
        reached = tuned.loc[(tuned["harmful"] < harmful) & (tuned["helpful"] >= helpful), "model"]
        row = {"arm": first["direction"], **{name: first[name] for name in ("kind", "operation", "hook")}}
        row |= {"strength": float(first["strength"]), "models": len(tuned), "reached": reached.tolist()}
        for model, [one] in models.items():
            row |= {f"{model}_{name}": one[name] for name in ("harmful", "low", "high", "helpful", "capability")}
        row |= {name: float(np.mean(tuned[name])) for name in ("harmful", "helpful", "incoherent")}
        found.append(row)
    return found
