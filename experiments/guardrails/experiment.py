"""Are directions of social valence guardrails? They are amplified and ablated in a run's models and in fine-tunes."""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.guardrails.config import GuardrailsConfig
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Guardrails(Experiment[GuardrailsConfig]):
    """arXiv 2605.10633 reports that ablating the Semantic Valence Vector (SVV) drives misalignment above 40%, and that
    amplifying it brings misalignment below 3%, also in fine-tunes that the vector was not taken from. Here every vector
    comes from the base. Layer, positions and strength are chosen once, on the selection questions and the run's own
    corrupted model; all that is reported was measured on the reporting questions. Strengths are in mean residual norms
    of the base at the hook over prompt tokens.
    """

    name = "guardrails"
    question = (
        "Are directions of social valence guardrails: does adding them repair fine-tunes, and ablating them misalign?"
    )
    config = GuardrailsConfig
    needs = frozenset({Need.SAMPLED_ANSWERS, Need.FINE_TUNES, Need.TRAIT_DIRECTIONS})
    may_change = frozenset({"models", "strengths", "floors", "budget", "least_harmful", "mild"})

    def measure(self, lab: "Lab[GuardrailsConfig]") -> Measured:
        from experiments.guardrails.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[GuardrailsConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.guardrails.summary import summarise

        return summarise(measured.tables, measured.facts, lab.config.budget)

    def sentences(self, result: Result) -> list[str]:
        from experiments.guardrails.summary import findings

        return findings(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.guardrails.rows import sections

        return sections(result.tables, result.summary)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.guardrails.figures import draw

        return draw(result.tables, result.summary)


EXPERIMENT = Guardrails()
