"""How a run's capability questions are answered under treatments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from diffing.behavior.judge import Label
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import LabelCounts
from diffing.behavior.sampling import SamplingConfig
from diffing.steering.experiment import Half
from diffing.steering.transfer import Layers, Treated, Treatment, run_treatments
from experiments.convergence.lab import Lab, Source


@dataclass(frozen=True)
class ExactMatch:
    """Judge of capability: an answer that equals the question's, word for word, counts as helpful, others as other."""

    expected: Mapping[str, str]
    name: str = "exact match"

    def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
        """One label for each (prompt, answer) pair."""
        pairs = zip(prompts, answers, strict=True)
        return [Label.HELPFUL if text == self.expected[prompt.id] else Label.OTHER for prompt, text in pairs]


class Capability:
    """Exact answers under treatments, with every kind of intervention that behaviour is measured under."""

    def __init__(self, lab: Lab, path: Path, sampling: SamplingConfig) -> None:
        questions = load_prompts(path)
        if unanswered := [q.id for q in questions if q.answer is None]:
            raise UserError(f"Capability question '{unanswered[0]}' has no answer; add one to its file.")
        judge = ExactMatch({q.id: q.answer for q in questions if q.answer is not None})
        behavior = SampledAnswers(judge, sampling)
        benches = {hook: replace(bench, behavior=behavior) for hook, bench in lab.layers.benches.items()}
        self.lab, self.layers = lab, Layers(benches, lab.layers.base_means)
        self.half = Half("capability", [replace(q, answer=None) for q in questions])

    @classmethod
    def of(cls, lab: Lab) -> "Capability | None":
        """None if the run has no capability questions."""
        path, steering = lab.run.config.prompts.capability, lab.run.config.steering
        if path is None or steering is None:
            return None
        return cls(lab, path, steering.sampling.model_copy(update={"samples": lab.config.samples}))

    def observe(self, model: Checkpoint, pairs: Sequence[tuple[Source, Treatment]]) -> list[LabelCounts]:
        """Label counts under each treatment."""
        folder = self.lab.out.folder / "transcripts" / model.role / "capability"
        treated = [Treated(f"{source.name} {source.contrast}".strip(), source.units, t) for source, t in pairs]
        return run_treatments(self.layers, model, treated, self.half, folder, self.lab.progress)
