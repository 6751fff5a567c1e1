"""How do the directions of traits lie to one another, and does a fine-tune change that?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.geometry.config import GeometryConfig
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class GeometryExperiment(Experiment[GeometryConfig]):
    """How traits lie to one another (cosines, tree, map, valence) is compared between the base and every other model,
    and with random directions, traits with shuffled names, and the same model at another layer. An organism's traits
    are bundles of personas whose numbers stand in its world, so there the recovered geometry is compared with the true
    one. Last, the run's SAE: which latents make up a trait, whether the toxic latent is one of the traits or the
    valence axis, and how much of a fine-tune's mean shift lies in the space.
    """

    name = "geometry"
    question = "How do the directions of traits lie to one another, and does a fine-tune change that?"
    config = GeometryConfig
    needs = frozenset({Need.TRAIT_DIRECTIONS})

    def measure(self, lab: "Lab[GeometryConfig]") -> Measured:
        from experiments.geometry.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[GeometryConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.geometry.summary import summarise

        return summarise(lab, measured)

    def sentences(self, result: Result) -> list[str]:
        from experiments.geometry.summary import sentences

        return sentences(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.geometry.summary import sections

        return sections(result.summary)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.geometry.figures import figures

        return figures(result.measured, result.lab.trait_directions.valence, result.summary)


EXPERIMENT = GeometryExperiment()
