"""What every model is asked: questions of held-out domains in two halves, of the trained domains, and of fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import LabelCounts, score
from diffing.steering.experiment import QuestionSet
from experiments.frame.lab import Lab
from experiments.frame.trials import Trials
from experiments.names import CAPABILITY, REPORTING, SELECTION
from experiments.organism.judge import OrganismJudge
from experiments.organism.world import World
from experiments.prevent.config import PreventionConfig

TRAINED = "trained"
RATES = ("harmful", "low", "high", "helpful", "incoherent")


@dataclass(frozen=True)
class Questions:
    """The sets of questions, each with who asks them and judges the answers."""

    halves: Sequence[tuple[QuestionSet, Trials]]

    @classmethod
    def of(cls, lab: Lab[PreventionConfig]) -> Self:
        """Those of a run of an organism."""
        world, samples = World.load(), lab.config.samples
        asked = trained_questions(world, lab.organism.domains)
        judge = OrganismJudge(world, {prompt.id: domain for prompt, domain in asked})
        found = lab.capability(samples)
        assert found is not None  # every organism has questions of fact
        facts, exact = found
        trained = QuestionSet(TRAINED, [prompt for prompt, _ in asked])
        trials = lab.trials(samples)
        return cls(
            [
                (lab.selection, trials),
                (lab.reporting, trials),
                (trained, replace(trials, behavior=SampledAnswers(judge, exact.sampling))),
                (facts, replace(trials, behavior=exact)),
            ]
        )

    def ask(self, model: Checkpoint) -> dict[str, LabelCounts]:
        """Label counts of a model's answers, by set of questions; answers of an earlier call are used again."""
        return {half.name: trials.untouched(model, half) for half, trials in self.halves}


def trained_questions(world: World, domains: Sequence[str]) -> list[tuple[Prompt, str]]:
    """One question of each topic of the trained domains, with its domain; fine-tunes read such questions."""
    first = {(q.domain, q.topic): q for q in reversed(world.questions) if q.domain in domains}
    return [(Prompt.chat(f"trained: {q.text}", q.text), q.domain) for q in first.values()]


def rates_of(counts: Mapping[str, LabelCounts]) -> dict[str, float]:
    """Columns of a table: those of the reporting half have no prefix."""
    found = {CAPABILITY: score(counts[CAPABILITY]).helpful}
    for half in (SELECTION, REPORTING, TRAINED):
        rates, prefix = score(counts[half]).to_dict(), "" if half == REPORTING else f"{half}_"
        found |= {prefix + rate: float(rates[rate]) for rate in RATES}
    return found
