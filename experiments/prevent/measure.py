"""How a checkpoint answers: questions of held-out domains in two halves, of the trained domains, and of fact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.prompts import Prompt
from diffing.behavior.measure import Behavior, SampledAnswers
from diffing.behavior.rates import LabelCounts, score
from diffing.steering.arms import untouched
from diffing.steering.experiment import Half, run_cells
from experiments.organism.judge import OrganismJudge
from experiments.organism.world import World

SELECTION, REPORTING, TRAINED, CAPABILITY = "selection", "reporting", "trained", "capability"
RATES = ("harmful", "low", "high", "helpful", "incoherent")


@dataclass(frozen=True)
class Measures:
    """What every checkpoint is asked.

    Attributes:
        base: The run's base.
        samples: Answers to each question.
        transcripts: Folder where they are kept; those of an earlier call are used again.
    """

    base: Base
    samples: int
    transcripts: Path

    def measure(self, name: str, folder: Path) -> dict[str, LabelCounts]:
        """Label counts of a checkpoint's answers to each half of the questions."""
        checkpoint = load_checkpoint(CheckpointConfig(model=str(folder)).placed("cpu", "float32"), name)
        self.transcripts.mkdir(parents=True, exist_ok=True)
        counts = {}
        for half, behavior in self.halves:
            bench = self.base.bench(behavior)
            kept = self.transcripts / f"{name.replace(' ', '-')}_{half.name}.jsonl"
            [result] = run_cells(bench, checkpoint, [untouched(checkpoint.d_model)], half, kept, progress=False)
            counts[half.name] = result.counts
        return counts

    @cached_property
    def halves(self) -> list[tuple[Half, Behavior]]:
        """The questions of each half, and how answers to them are judged."""
        run, world = self.base.run, World.load()
        asked = trained_questions(world, run.domains)
        judge = OrganismJudge(world, {prompt.id: domain for prompt, domain in asked})
        trained = Half(TRAINED, [prompt for prompt, _ in asked])
        found = run.capability(self.samples)
        assert found is not None  # every organism has such questions
        facts, exact = found
        behavior = run.behavior(self.samples)
        return [
            (run.selection(), behavior),
            (run.reporting(), behavior),
            (trained, SampledAnswers(judge, exact.sampling)),
            (facts, exact),
        ]


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
