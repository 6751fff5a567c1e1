"""Is the shared direction what the trigger and the persona prompt act through? One shift subtracted where another acts.

Each shift's direction is subtracted in every way of being misaligned: the corrupted model, the triggered model under
its trigger, and the base under a persona prompt. Strengths are chosen on the selection questions within the budget of
incoherence, rates are of the reporting questions, and random directions get the strengths of the treated ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from activations.checkpoint import Checkpoint
from diffing.behavior.rates import REPAIRED_ANSWERS, rate_difference, score
from diffing.steering.choices import best_within
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from diffing.steering.verdict import repaired
from experiments.characters.conditions import Condition
from experiments.characters.config import CharactersConfig
from experiments.characters.structure import Shift
from experiments.frame.trials import NamedDirection, TreatmentOutcome, Trials

SHIFT = "shift"


@dataclass(frozen=True)
class Scene:
    """A model in a condition under which it misbehaves; loaded when it is treated, one after another."""

    name: str
    load: Callable[[], Checkpoint]
    condition: Condition


def subtract_shifts(
    trials: Trials, scenes: Sequence[Scene], shifts: Sequence[Shift], config: CharactersConfig
) -> pd.DataFrame:
    """A row for each scene and direction: rates untouched and treated, and the difference in repaired answers.

    Args:
        trials: Judges, questions, controls; directions are subtracted at the run's hook.
        scenes: Where directions are subtracted.
        shifts: Whose mean directions, as unit vectors.
        config: Strengths that are tried, and the budget of incoherence that they are chosen within.
    """
    lab, hook, strengths = trials.lab, trials.lab.hook, config.strengths
    sources = [_source(shift, lab.hooks) for shift in shifts]
    rows = []
    for scene in scenes:
        model = scene.load()
        selection, reporting = (scene.condition.told(half) for half in (lab.selection, lab.reporting))
        tried = trials.treat(model, selection, [(s, _subtract(hook, c)) for s in sources for c in strengths])
        chosen = _chosen(tried, config.budget)
        pairs = [(source, chosen[source.name]) for source in sources]
        pairs += [(control, treatment) for treatment in dict.fromkeys(chosen.values()) for control in trials.controls]
        rows += [_row(scene, outcome) for outcome in trials.treat(model, reporting, pairs)]
    return pd.DataFrame(rows)


def _source(shift: Shift, hooks: Sequence[str]) -> NamedDirection:
    means = {hook: torch.from_numpy(shift.rows(hook).mean(0)).float() for hook in hooks}
    return NamedDirection(shift.name, "", SHIFT, {hook: mean / mean.norm() for hook, mean in means.items()})


def _subtract(hook: str, strength: float) -> Treatment:
    return Treatment(Operation.SUBTRACT, Reach.ONE, hook, strength)


def _chosen(tried: Sequence[TreatmentOutcome], budget: float) -> Mapping[str, Treatment]:
    """For each direction the strength that repairs most within the budget."""
    options: dict[str, dict[Treatment, list[TreatmentOutcome]]] = {}
    for outcome in tried:
        options.setdefault(outcome.source.name, {})[outcome.treatment] = [outcome]
    return {name: best_within(doses, lambda o: repaired(o.scores), budget) for name, doses in options.items()}


def _row(scene: Scene, outcome: TreatmentOutcome) -> dict[str, object]:
    difference = rate_difference(outcome.counts, outcome.plain, REPAIRED_ANSWERS)
    plain = {f"untouched_{name}": value for name, value in zip(("harmful", "helpful"), _rates(outcome), strict=True)}
    return {
        "scene": scene.name,
        **{key: value for key, value in outcome.row().items() if key not in ("half", "contrast")},
        **plain,
        **dict(zip(("repaired", "repaired_low", "repaired_high"), difference, strict=True)),
    }


def _rates(outcome: TreatmentOutcome) -> tuple[float, float]:
    scores = score(outcome.plain)
    return scores.harmful, scores.helpful
