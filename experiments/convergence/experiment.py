"""Do fine-tunes of one base misalign along one direction, and does taking it out of one repair another?"""

from typing import TYPE_CHECKING, Any

from experiments.convergence.config import ConvergenceConfig
from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Convergence(Experiment[ConvergenceConfig]):
    """For a few misaligned fine-tunes of different kinds (Soligo et al. 2025, arXiv 2506.11618): the four means {model}
    x {answers} at every layer, both contrasts of them, and the cosines between fine-tunes; ablation, subtraction and
    addition at every layer; each direction taken out of every model; what rank-1 adapters write compared with the
    directions. Members, operation, layers and strength are chosen on the selection questions; rates are those of the
    reporting questions where a table does not say otherwise.
    """

    name = "convergence"
    question = "Do fine-tunes misalign along one direction, and does taking it out of one repair another?"
    config = ConvergenceConfig
    needs = frozenset({Need.SAMPLED_ANSWERS, Need.FINE_TUNES})
    # Chance cosines are drawn again by every call.
    may_change = frozenset({"draws"})

    def measure(self, lab: "Lab[ConvergenceConfig]") -> Measured:
        from experiments.convergence.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[ConvergenceConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.convergence.summary import summarise

        return summarise(measured)

    def sentences(self, result: Result) -> list[str]:
        from experiments.convergence.summary import finding

        return [finding(result.summary)]

    def sections(self, result: Result) -> list[Section]:
        from experiments.convergence.summary import sections

        return sections(result.tables, result.summary, result.lab.hook)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.convergence.figures import draw

        return draw(result.tables, result.summary, result.lab.hook)


EXPERIMENT = Convergence()
