"""Is the shared direction what the trigger and the persona prompt act through? One shift subtracted where another acts.

Each shift's direction is taken out of every way of being misaligned: the corrupted model, the triggered model under
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
from diffing.steering.experiment import Half
from diffing.steering.transfer import Reach, Treatment
from diffing.steering.verdict import repaired
from experiments.characters.conditions import Condition
from experiments.characters.structure import Shift
from experiments.frame.lab import Lab
from experiments.frame.trials import NamedDirection, TreatmentOutcome

SHIFT = "shift"


@dataclass(frozen=True)
class Scene:
    """A model in a condition under which it misbehaves; loaded when it is treated, one after another."""

    name: str
    load: Callable[[], Checkpoint]
    condition: Condition


def subtract_shifts(
    lab: Lab, scenes: Sequence[Scene], shifts: Sequence[Shift], hook: str, strengths: Sequence[float]
) -> pd.DataFrame:
    """A row for each scene and direction: rates untouched and treated, and the difference in repaired answers.

    Args:
        lab: Judges, questions, controls.
        scenes: Where directions are taken out.
        shifts: Whose mean directions, as unit vectors.
        hook: Where.
        strengths: Tried, in mean residual norms of the base.
    """
    sources = [_source(shift, lab.hooks) for shift in shifts]
    rows = []
    for scene in scenes:
        model = scene.load()
        selection, reporting = (_asked(scene, half) for half in (lab.selection, lab.reporting))
        tried = lab.treat(model, selection, [(s, _subtract(hook, c)) for s in sources for c in strengths])
        chosen = _chosen(tried, lab.config.budget)
        pairs = [(source, chosen[source.name]) for source in sources]
        pairs += [(control, treatment) for treatment in dict.fromkeys(chosen.values()) for control in lab.controls]
        rows += [_row(scene, outcome) for outcome in lab.treat(model, reporting, pairs)]
    return pd.DataFrame(rows)


def _source(shift: Shift, hooks: Sequence[str]) -> NamedDirection:
    means = {hook: torch.from_numpy(shift.rows(hook).mean(0)).float() for hook in hooks}
    return NamedDirection(shift.name, "", SHIFT, {hook: mean / mean.norm() for hook, mean in means.items()})


def _asked(scene: Scene, half: Half) -> Half:
    return Half(f"{half.name} {scene.condition.label}", scene.condition.ask(half.questions))


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
