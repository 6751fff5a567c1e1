"""What is chosen on the selection questions: positions and hook of the SVV, and each arm's sign and strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from activations.checkpoint import Checkpoint
from diffing.personality.valence import SVV
from diffing.steering.choices import best_within
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from diffing.steering.verdict import repaired
from experiments.frame.trials import TreatmentOutcome, Trials
from experiments.guardrails.config import GuardrailsConfig
from experiments.guardrails.sparing import Pair, sparing_doses
from experiments.guardrails.vectors import VALENCE, Arms, BaseVectors, make_arms

SIGNS = (Operation.ADD, Operation.SUBTRACT)


@dataclass(frozen=True)
class Choices:
    """What was chosen, in the base and in the run's corrupted model.

    Attributes:
        sweep: The SVV amplified in the corrupted model: all positions, hooks and strengths.
        arms: The vectors at the positions and the hook that repair most.
        repair, induce: For each arm the treatment that repairs the corrupted model most, and that misaligns the base
            most.
        spared: Doses that leave the base as it is (`sparing_doses`).
    """

    sweep: list[TreatmentOutcome]
    arms: Arms
    repair: dict[str, Treatment]
    induce: dict[str, Treatment]
    spared: list[Pair]

    @classmethod
    def make(cls, trials: Trials, corrupted: Checkpoint, vectors: BaseVectors, config: GuardrailsConfig) -> Self:
        """Makes all of them."""
        sweep = sweep_places(trials, corrupted, vectors, config.strengths)
        positions, amplified = choose_place(sweep, config.budget)
        arms = make_arms(trials, vectors, positions, amplified.hook)
        options = _Options(trials, arms, config)
        return cls(
            sweep,
            arms,
            repair=options.best(corrupted, Operation.ADD, lambda o: repaired(o.scores)),
            induce=options.best(trials.lab.base, Operation.SUBTRACT, lambda o: o.scores.harmful),
            spared=sparing_doses(trials, corrupted, arms, config),
        )

    @property
    def amplified(self) -> Treatment:
        """With what the SVV repairs."""
        return self.repair[SVV]


def sweep_places(
    trials: Trials, corrupted: Checkpoint, vectors: BaseVectors, strengths: Sequence[float]
) -> list[TreatmentOutcome]:
    """The SVV amplified in the corrupted model: all positions, hooks and strengths."""
    svv = [vectors.of_valence(positions)[0] for positions in vectors.positions]
    pairs = [(v, at_hook(Operation.ADD, hook, c)) for v in svv for hook in trials.lab.hooks for c in strengths]
    return trials.treat(corrupted, trials.lab.selection, pairs)


def choose_place(sweep: Sequence[TreatmentOutcome], budget: float) -> tuple[str, Treatment]:
    """Positions, and hook with strength, that bring most helpful instead of harmful answers within the budget."""
    options = {(o.source.contrast, o.treatment): [o] for o in sweep}
    return best_within(options, lambda o: repaired(o.scores), budget)


def at_hook(operation: Operation, hook: str, strength: float = 0.0) -> Treatment:
    """A treatment at one layer."""
    return Treatment(operation, Reach.ONE, hook, strength)


@dataclass(frozen=True)
class _Options:
    """Every arm at every strength."""

    trials: Trials
    arms: Arms
    config: GuardrailsConfig

    def best(
        self, model: Checkpoint, sign: Operation, wanted: Callable[[TreatmentOutcome], float]
    ) -> dict[str, Treatment]:
        """For each arm the sign and strength with most of `wanted` within the budget.

        The sign of SVV and PC1 is given: `sign`. That of the others is chosen with the strength.
        """
        pairs = [
            (arm, at_hook(operation, self.arms.hook, c))
            for arm in self.arms.treated
            for operation in ((sign,) if arm.kind == VALENCE else SIGNS)
            for c in self.config.strengths
        ]
        options: dict[str, dict[Treatment, list[TreatmentOutcome]]] = {}
        for o in self.trials.treat(model, self.trials.lab.selection, pairs):
            options.setdefault(o.source.name, {})[o.treatment] = [o]
        return {name: best_within(doses, wanted, self.config.budget) for name, doses in options.items()}
