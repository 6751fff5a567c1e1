"""Does the latent rise before the behaviour does, and is it gone or masked after re-alignment?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section
from experiments.trajectory.config import TrajectoryConfig

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Trajectory(Experiment[TrajectoryConfig]):
    """The base of a finished run is corrupted again exactly as its organism was, then re-aligned on about a hundred
    helpful answers (Wang et al. 2025, arXiv 2506.19823: 120 samples, 30 steps of 4). Every few steps the model is saved
    and measured: the toxic latent's activity and the direction's projection on the ranking prompts, and sampled answers
    to the reporting questions. At the end the latent is added to the base and to the re-aligned model, and so are
    random directions: if the same addition does more to the re-aligned one, the persona was masked rather than removed.
    """

    name = "trajectory"
    question = "Does the latent rise before the behaviour does, and is it gone or masked after re-alignment?"
    config = TrajectoryConfig
    needs = frozenset({Need.ORGANISM, Need.TOXIC_LATENT})

    def measure(self, lab: "Lab[TrajectoryConfig]") -> Measured:
        from experiments.trajectory.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[TrajectoryConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.trajectory.summary import summarise

        return summarise(measured.tables["trajectory"], measured.config["latent"], measured.facts)

    def sentences(self, result: Result) -> list[str]:
        from experiments.trajectory.summary import findings

        return findings(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.trajectory.summary import table_rows

        return [Section("All measurements", table_rows(result.tables["trajectory"]))]

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.trajectory.figures import masking, trajectory

        summary = result.summary
        return [trajectory(result.tables["trajectory"], summary["latent"]), masking(summary["masking"])]


EXPERIMENT = Trajectory()
