"""How a run's capability questions are answered under treatments."""

from collections.abc import Sequence
from dataclasses import replace

from activations.checkpoint import Checkpoint
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import LabelCounts
from diffing.steering.experiment import Half
from diffing.steering.transfer import Layers, Treated, Treatment, run_treatments
from experiments.frame.lab import Lab
from experiments.frame.trials import NamedDirection


class Capability:
    """Exact answers under treatments, with every kind of intervention that behaviour is measured under."""

    def __init__(self, lab: Lab, half: Half, behavior: SampledAnswers) -> None:
        benches = {hook: replace(bench, behavior=behavior) for hook, bench in lab.layers.benches.items()}
        self.lab, self.layers = lab, Layers(benches, lab.layers.base_means)
        self.half = half

    @classmethod
    def of(cls, lab: Lab) -> "Capability | None":
        """None if the run has no capability questions."""
        found = lab.run.capability(lab.config.samples)
        return None if found is None else cls(lab, *found)

    def observe(self, model: Checkpoint, pairs: Sequence[tuple[NamedDirection, Treatment]]) -> list[LabelCounts]:
        """Label counts under each treatment."""
        folder = self.lab.out.folder / "transcripts" / model.role / "capability"
        treated = [Treated(f"{source.name} {source.contrast}".strip(), source.units, t) for source, t in pairs]
        return run_treatments(self.layers, model, treated, self.half, folder, self.lab.progress)
