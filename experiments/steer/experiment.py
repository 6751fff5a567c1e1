"""Which of the first latents of a run are causal?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section
from experiments.steer.config import SteerConfig

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Steer(Experiment[SteerConfig]):
    """The causal filter over the top latents of a finished run. They are steered as the run itself steers its first
    ones: added to the base, subtracted from the corrupted model and ablated there, each at a strength of its own, with
    controls. The verdicts become columns of a copy of the run's ranking, in the folder `ranking` of the result.
    """

    name = "steer"
    question = "Which of the top latents of the ranking cause the behaviour?"
    config = SteerConfig
    needs = frozenset({Need.BEHAVIOR})

    def measure(self, lab: "Lab[SteerConfig]") -> Measured:
        from experiments.steer.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[SteerConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.steer.summary import summarise

        return summarise(measured.facts.table)

    def sentences(self, result: Result) -> list[str]:
        from experiments.steer.summary import findings

        return findings(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.steer.summary import verdict_rows

        note = "Causal latents first, then those with the largest effects (at most 20 in all)."
        return [Section("Verdicts", verdict_rows(result.summary), note)]

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.steer.figures import effects

        return [effects(result.facts.table)]


EXPERIMENT = Steer()
