"""Where are the directions of traits, layer by layer, and how well do they hold?"""

from typing import TYPE_CHECKING, Any

from diffing.personality.config import TRAIT_DIRECTIONS
from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section
from experiments.trait_directions.config import TraitDirectionsConfig

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class TraitDirectionsExperiment(Experiment[TraitDirectionsConfig]):
    """The run's base and corrupted model, and the final models of a set of fine-tunes, answer contrastive prompts.
    Pairs of answers that show the contrast are kept (Chen et al. 2025, arXiv 2507.21509) and read again by the model
    that gave them. A trait's direction is the mean over questions of the difference between the two poles. Each has a
    split-half reliability and an AUC of probes on questions that they were not fitted on; the layer is chosen on one
    half of the questions and reported on the other. The set of fine-tunes may grow from call to call.
    """

    name = TRAIT_DIRECTIONS
    question = "Where are the directions of traits in the run's models and in further fine-tunes, layer by layer?"
    config = TraitDirectionsConfig
    takes = frozenset({Need.FINE_TUNES, Need.TRAITS})
    may_change = frozenset({"models"})

    def measure(self, lab: "Lab[TraitDirectionsConfig]") -> Measured:
        from experiments.trait_directions.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[TraitDirectionsConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.trait_directions.summary import summarise

        return summarise(measured.facts, lab.traits, lab.trait_judge)

    def sentences(self, result: Result) -> list[str]:
        from experiments.trait_directions.summary import sentences

        return sentences(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.trait_directions.summary import best_rows, pair_rows

        return [
            Section("Where the traits separate best", best_rows(result.summary)),
            Section("Pairs of answers by outcome", pair_rows(result.tables["pairs"]), printed=False),
        ]

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.trait_directions.figures import figures

        return figures(result.tables, result.summary)


EXPERIMENT = TraitDirectionsExperiment()
