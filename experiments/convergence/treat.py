"""Directions added, subtracted and ablated: at every layer, and in every fine-tune."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from diffing.directions.misalignment import CONTRASTS, Contrast
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from experiments.convergence.config import FINE_TUNE, ConvergenceLab
from experiments.convergence.members import Tuned
from experiments.lab import ISOTROPIC, Outcome, Source

ABLATIONS = (Operation.ABLATE, Operation.ABLATE_TO_MEAN)
Key = TypeVar("Key")


def sweep(lab: ConvergenceLab, tuned: Sequence[Tuned], sources: Sequence[Source]) -> list[Outcome]:
    """Every fine-tune treated with its own direction at every layer, and the base steered with it.

    Random directions are ablated at each layer alone, and other ones at all layers at once.
    """
    ablations, outcomes = ablations_of(lab.hooks), []
    subtractions = strengths_of(Operation.SUBTRACT, lab)
    controlled = [t for t in ablations if t.operation == Operation.ABLATE and t.reach != Reach.EVERYWHERE]
    controls = _pairs([control for control in lab.controls if control.kind == ISOTROPIC], controlled)
    for one in tuned:
        model = lab.load(one.member.checkpoint, one.name)
        own = [source for source in sources if source.name == one.name]
        tried = lab.treat(model, lab.selection, _pairs(own, [*ablations, *subtractions]))
        subtracted = [o for o in tried if o.treatment.operation == Operation.SUBTRACT]
        best = best_strengths(subtracted, lambda o: o.removed[0], lab.config.budget)
        outcomes += tried + lab.treat(model, lab.reporting, [*_pairs(own, ablations), *best, *controls])
    return outcomes + steer_base(lab, [source for source in sources if source.kind == FINE_TUNE])


def steer_base(lab: ConvergenceLab, sources: Sequence[Source]) -> list[Outcome]:
    """Every direction added to the base at every layer, with random ones at the same strengths."""
    tried = lab.treat(lab.base, lab.selection, _pairs(sources, strengths_of(Operation.ADD, lab)))
    best = best_strengths(tried, lambda o: o.scores.harmful, lab.config.budget)
    used = dict.fromkeys(treatment for _, treatment in best)
    controls = [source for source in lab.controls if source.kind == ISOTROPIC]
    return tried + lab.treat(lab.base, lab.reporting, [*best, *_pairs(controls, list(used))])


def ablations_of(hooks: Sequence[str]) -> list[Treatment]:
    """Both ablations at each layer, of each layer's vector at all layers, and of each layer's own at all layers."""
    return [
        *(Treatment(op, reach, hook) for op in ABLATIONS for reach in (Reach.ONE, Reach.EVERYWHERE) for hook in hooks),
        *(Treatment(op, Reach.LAYER_WISE) for op in ABLATIONS),
    ]


def strengths_of(operation: Operation, lab: ConvergenceLab) -> list[Treatment]:
    """Addition or subtraction at each layer with each strength."""
    return [Treatment(operation, Reach.ONE, hook, c) for hook in lab.hooks for c in lab.config.strengths]


def best_strengths(
    outcomes: Sequence[Outcome], wanted: Callable[[Outcome], float], budget: float
) -> list[tuple[Source, Treatment]]:
    """For each direction and layer, the best strength within the budget."""
    groups: dict[tuple[str, str, str], dict[Treatment, list[Outcome]]] = {}
    for o in outcomes:
        groups.setdefault((o.source.name, o.source.contrast, o.treatment.hook), {})[o.treatment] = [o]
    best = [options[best_within(options, wanted, budget)][0] for options in groups.values()]
    return [(o.source, o.treatment) for o in best]


def choose_treatments(swept: Sequence[Outcome], budget: float) -> list[tuple[Contrast, Treatment]]:
    """For each operation and contrast, where and how strongly it removes most from the fine-tunes that it comes from.

    Chosen on the selection half, one for all fine-tunes: by the mean share removed, within the mean budget.
    """
    tried = [o for o in swept if o.half == "selection" and o.model == o.source.name]
    chosen: list[tuple[Contrast, Treatment]] = []
    for operation in (*ABLATIONS, Operation.SUBTRACT):
        for contrast in CONTRASTS:
            options: dict[Treatment, list[Outcome]] = {}
            for o in tried:
                if o.source.contrast == contrast and o.treatment.operation == operation:
                    options.setdefault(o.treatment, []).append(o)
            chosen.append((contrast, best_within(options, lambda o: o.removed[0], budget)))
    return chosen


def best_within(options: Mapping[Key, Sequence[Outcome]], wanted: Callable[[Outcome], float], budget: float) -> Key:
    """The option with the most of `wanted` in the mean of its outcomes among those within the budget of incoherence.

    If none is within it, the one with the fewest incoherent answers.
    """
    extra = {key: sum(o.extra_incoherent for o in found) / len(found) for key, found in options.items()}
    within = [key for key in options if extra[key] <= budget]
    if not within:
        return min(options, key=lambda key: extra[key])
    return max(within, key=lambda key: sum(map(wanted, options[key])) / len(options[key]))


def transfer(
    lab: ConvergenceLab,
    tuned: Sequence[Tuned],
    sources: Sequence[Source],
    chosen: Sequence[tuple[Contrast, Treatment]],
) -> list[Outcome]:
    """The chosen treatments of every fine-tune with every direction, the harmless one's and random ones included."""
    pairs = [(s, treatment) for contrast, treatment in chosen for s in sources if s.contrast == contrast]
    pairs += _pairs(lab.controls, list(dict.fromkeys(treatment for _, treatment in chosen)))
    models = ((one.member.checkpoint, one.name) for one in tuned)
    return [o for checkpoint, name in models for o in lab.treat(lab.load(checkpoint, name), lab.reporting, pairs)]


def _pairs(sources: Sequence[Source], treatments: Sequence[Treatment]) -> list[tuple[Source, Treatment]]:
    return [(source, treatment) for source in sources for treatment in treatments]
