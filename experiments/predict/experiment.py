"""Does a latent tell a misaligned model from an aligned one before any behaviour is sampled?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section
from experiments.predict.config import PredictConfig

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Predict(Experiment[PredictConfig]):
    """Every fine-tune of a set reads the run's ranking prompts: what its latents, its activations and its predictions
    differ by from the base are the features. Answers to the run's reporting questions are sampled once and only make
    the labels: misaligned is a model with a large enough share of harmful answers. Rules are fitted on all kinds of
    fine-tunes but one and tested on that one. The latent is chosen in every training fold on its own; the run's verdict
    about its toxic latent is not used.

    Two further questions are asked of the same measurements: from which fraction of bad data on does the latent, and
    does the behaviour, stand out; and do early checkpoints that still behave predict how their fine-tune ends?
    """

    name = "predict"
    question = "Does a latent tell a misaligned fine-tune before any answer is sampled, on kinds that it never saw?"
    config = PredictConfig
    needs = frozenset({Need.BEHAVIOR, Need.FINE_TUNES})
    # Members are measured one by one; all that is fitted is fitted again.
    may_change = frozenset({"models", "candidates", "random_latents", "replicates", "misaligned", "still_aligned"})

    def measure(self, lab: "Lab[PredictConfig]") -> Measured:
        from experiments.predict.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[PredictConfig]", measured: Measured) -> dict[str, Any]:
        return measured.facts.summary(measured.tables["predictions"])

    def sentences(self, result: Result) -> list[str]:
        from experiments.predict.summary import sentences

        return sentences(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.predict.summary import sections

        return sections(result.tables["predictions"], result.summary)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.predict.figures import draw

        return draw(result.tables["predictions"], result.summary)


EXPERIMENT = Predict()
