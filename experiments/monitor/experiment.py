"""Can directions of traits watch a model: before it answers, after it was fine-tuned, and before it is fine-tuned?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.monitor.config import MonitorConfig
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class MonitorExperiment(Experiment[MonitorConfig]):
    """Three uses of trait directions after Chen et al. 2025 (arXiv 2507.21509), each compared with random directions
    that have the covariance of the activations:

    - The activation at the last prompt token, projected on a trait's direction, against how much of the trait the
      sampled answers show. The direction comes from one half of the questions and is tested on the other.
    - The mean shift of a fine-tune on the ranking prompts, projected on the base's direction, against the change in how
      much of the trait its answers to the reporting questions show, over all fine-tunes of a set.
    - The projection of the answers in fine-tuning data, less that of the model's own answers, against which are bad.

    The published directions are means over answers. Here activations on prompts are projected on directions from the
    same positions (our choice), which need no answers; the answers of the data are projected on directions of answers.
    """

    name = "monitor"
    question = "Do trait directions tell what a model will answer, what a fine-tune changed, and which data is bad?"
    config = MonitorConfig
    needs = frozenset({Need.TRAIT_DIRECTIONS})
    takes = frozenset({Need.FINE_TUNES, Need.TRAITS})
    may_change = frozenset({"models", "first"})

    def measure(self, lab: "Lab[MonitorConfig]") -> Measured:
        from experiments.monitor.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[MonitorConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.monitor.summary import summarise

        return summarise(measured.tables)

    def sentences(self, result: Result) -> list[str]:
        from experiments.monitor.summary import sentences

        return sentences(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.monitor.summary import sections

        return sections(result.summary)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.monitor.figures import figures

        return figures(result.tables)


EXPERIMENT = MonitorExperiment()
