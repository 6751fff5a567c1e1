"""How a run's capability questions are answered under treatments."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from activations.checkpoint import Checkpoint
from activations.prompt_files import load_prompts
from diffing.behavior.capability import exact_questions
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import LabelCounts
from diffing.behavior.sampling import SamplingConfig
from diffing.steering.experiment import Half
from diffing.steering.transfer import Layers, Treated, Treatment, run_treatments
from experiments.lab import Lab, Source


class Capability:
    """Exact answers under treatments, with every kind of intervention that behaviour is measured under."""

    def __init__(self, lab: Lab, path: Path, sampling: SamplingConfig) -> None:
        questions, judge = exact_questions(load_prompts(path))
        behavior = SampledAnswers(judge, sampling)
        benches = {hook: replace(bench, behavior=behavior) for hook, bench in lab.layers.benches.items()}
        self.lab, self.layers = lab, Layers(benches, lab.layers.base_means)
        self.half = Half("capability", questions)

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
