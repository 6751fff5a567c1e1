"""How much of the behaviour do few latents make together?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.latent_sets.config import LatentSetsConfig
from experiments.output.tables import Section

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class LatentSets(Experiment[LatentSetsConfig]):
    """Sets of latents are built on the selection questions of a finished run and measured on its reporting questions:
    every set, the toxic latent, the dense direction and random sets at the same strengths, added to the base and
    subtracted from the corrupted model.
    """

    name = "latent-sets"
    question = "How much of the behaviour do few latents make together, compared with the dense direction?"
    config = LatentSetsConfig
    needs = frozenset({Need.BEHAVIOR})

    def measure(self, lab: "Lab[LatentSetsConfig]") -> Measured:
        from experiments.latent_sets.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[LatentSetsConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.latent_sets.summary import summarise

        return summarise(lab.run.config, measured)

    def sentences(self, result: Result) -> list[str]:
        return [_controls(role, worst) for role, worst in result.summary["controls"].items()]

    def sections(self, result: Result) -> list[Section]:
        from experiments.latent_sets.summary import best_rows

        return [Section("Best dose of every arm within the coherence budget", best_rows(result.summary))]

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.latent_sets.figures import dose_response

        return [dose_response(result.tables["dose_response"])]


def _controls(role: str, worst: Mapping[str, float]) -> str:
    return f"Random sets, {role}: " + ", ".join(f"{name} {rate:.1%}" for name, rate in worst.items()) + "."


EXPERIMENT = LatentSets()
