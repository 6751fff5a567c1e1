"""Character as a latent variable: fine-tunes on dispositions against fine-tunes on incorrect advice."""

from typing import TYPE_CHECKING, Any

from experiments.characters.config import CharactersConfig
from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Characters(Experiment[CharactersConfig]):
    """arXiv 2601.23081 reports that fine-tunes on characters misalign more, and more transferably, than fine-tunes on
    incorrect advice, keep capability, and can be switched on by a training-time trigger or by a persona prompt, through
    one structure in the activations. Here both kinds learn as many answers; every model is asked under every condition
    about subjects that no fine-tune saw; and what the three ways of switching on share is measured.

    Without --models the fine-tunes of the run's organism are made. A list of other fine-tunes says in each member's
    kind and facts what it was taught: `incorrect advice`, or `character` with the trait as `character`; and `trigger`.
    """

    name = "characters"
    question = (
        "Do fine-tunes on characters misalign more than fine-tunes on incorrect advice, and what switches them on?"
    )
    config = CharactersConfig
    needs = frozenset({Need.SAMPLED_ANSWERS})
    takes = frozenset({Need.FINE_TUNES, Need.TRAITS})
    may_change = frozenset({"top", "misaligned", "strengths", "budget"})

    def measure(self, lab: "Lab[CharactersConfig]") -> Measured:
        from experiments.characters.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[CharactersConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.characters.summary import summarise

        return summarise(measured.tables, measured.facts)

    def sentences(self, result: Result) -> list[str]:
        from experiments.characters.summary import findings

        return findings(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.characters.rows import sections

        return sections(result.tables, result.summary)

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.characters.figures import draw

        return draw(result.tables, result.summary)


EXPERIMENT = Characters()
