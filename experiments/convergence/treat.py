"""Directions added, subtracted and ablated: at every layer, and in every fine-tune."""

from collections.abc import Callable, Sequence
from itertools import product

from diffing.directions.misalignment import CONTRASTS, Contrast
from diffing.steering.choices import ABLATIONS, ablations_of, best_within
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from experiments.convergence.config import FINE_TUNE
from experiments.convergence.members import ConvergenceLab, Tuned
from experiments.frame.trials import NamedDirection, TreatmentOutcome, Trials
from experiments.names import ISOTROPIC, SELECTION


def sweep(
    lab: ConvergenceLab, trials: Trials, tuned: Sequence[Tuned], directions: Sequence[NamedDirection]
) -> list[TreatmentOutcome]:
    """Every fine-tune treated with its own direction at every layer, and the base steered with it.

    Random directions are ablated at each layer alone, and other ones at all layers at once.
    """
    ablations, outcomes = ablations_of(lab.hooks), []
    subtractions = strengths_of(Operation.SUBTRACT, lab)
    controlled = [t for t in ablations if t.operation == Operation.ABLATE and t.reach != Reach.EVERYWHERE]
    controls = _pairs(_isotropic(trials), controlled)
    for one in tuned:
        model = lab.load(one.member.checkpoint, one.name)
        own = [direction for direction in directions if direction.name == one.name]
        tried = trials.treat(model, lab.selection, _pairs(own, [*ablations, *subtractions]))
        subtracted = [o for o in tried if o.treatment.operation == Operation.SUBTRACT]
        best = best_strengths(subtracted, lambda o: o.removed[0], lab.config.budget)
        outcomes += tried + trials.treat(model, lab.reporting, [*_pairs(own, ablations), *best, *controls])
        del model  # the next one needs its memory
    return outcomes + steer_base(lab, trials, [found for found in directions if found.kind == FINE_TUNE])


def steer_base(lab: ConvergenceLab, trials: Trials, directions: Sequence[NamedDirection]) -> list[TreatmentOutcome]:
    """Every direction added to the base at every layer, with random ones at the same strengths."""
    tried = trials.treat(lab.base, lab.selection, _pairs(directions, strengths_of(Operation.ADD, lab)))
    best = best_strengths(tried, lambda o: o.scores.harmful, lab.config.budget)
    used = dict.fromkeys(treatment for _, treatment in best)
    return tried + trials.treat(lab.base, lab.reporting, [*best, *_pairs(_isotropic(trials), list(used))])


def strengths_of(operation: Operation, lab: ConvergenceLab) -> list[Treatment]:
    """Addition or subtraction at each layer with each strength."""
    return [Treatment(operation, Reach.ONE, hook, c) for hook in lab.hooks for c in lab.config.strengths]


def best_strengths(
    outcomes: Sequence[TreatmentOutcome], wanted: Callable[[TreatmentOutcome], float], budget: float
) -> list[tuple[NamedDirection, Treatment]]:
    """For each direction and layer, the best strength within the budget."""
    groups: dict[tuple[str, str, str], dict[Treatment, list[TreatmentOutcome]]] = {}
    for o in outcomes:
        groups.setdefault((o.source.name, o.source.contrast, o.treatment.hook), {})[o.treatment] = [o]
    best = [options[best_within(options, wanted, budget)][0] for options in groups.values()]
    return [(o.source, o.treatment) for o in best]


def choose_treatments(swept: Sequence[TreatmentOutcome], budget: float) -> list[tuple[Contrast, Treatment]]:
    """For each operation and contrast, where and how strongly it removes most from the fine-tunes that it comes from.

    Chosen on the selection half, one for all fine-tunes: by the mean share removed, within the mean budget.
    """
    tried = [o for o in swept if o.half == SELECTION and o.model == o.source.name]
    chosen: list[tuple[Contrast, Treatment]] = []
    for operation, contrast in product((*ABLATIONS, Operation.SUBTRACT), CONTRASTS):
        options: dict[Treatment, list[TreatmentOutcome]] = {}
        for o in tried:
            if o.source.contrast == contrast and o.treatment.operation == operation:
                options.setdefault(o.treatment, []).append(o)
        chosen.append((contrast, best_within(options, lambda o: o.removed[0], budget)))
    return chosen


def transfer(
    lab: ConvergenceLab,
    trials: Trials,
    tuned: Sequence[Tuned],
    directions: Sequence[NamedDirection],
    chosen: Sequence[tuple[Contrast, Treatment]],
) -> list[TreatmentOutcome]:
    """The chosen treatments of every fine-tune with every direction, the harmless one's and random ones included."""
    pairs = [(found, treatment) for contrast, treatment in chosen for found in directions if found.contrast == contrast]
    pairs += _pairs(trials.controls, list(dict.fromkeys(treatment for _, treatment in chosen)))
    models = ((one.member.checkpoint, one.name) for one in tuned)
    return [o for checkpoint, name in models for o in trials.treat(lab.load(checkpoint, name), lab.reporting, pairs)]


def _isotropic(trials: Trials) -> list[NamedDirection]:
    return [control for control in trials.controls if control.kind == ISOTROPIC]


def _pairs(
    directions: Sequence[NamedDirection], treatments: Sequence[Treatment]
) -> list[tuple[NamedDirection, Treatment]]:
    return [(direction, treatment) for direction in directions for treatment in treatments]
