"""Does a fine-tune on harmful advice stay narrow when its persona shift is prevented while it trains?"""

from typing import TYPE_CHECKING, Any

from experiments.frame.experiment import Experiment, Measured, Need, Result
from experiments.output.tables import Section
from experiments.prevent.config import PreventionConfig

if TYPE_CHECKING:
    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Prevent(Experiment[PreventionConfig]):
    """The base of a finished run is fine-tuned on harmful advice as its organism's corrupted model was: as it is, with
    preventative steering along the base's persona direction, and with a penalty on latents that rose in the run, each
    at several doses; controls are random directions, and other latents of similar activity.

    Every fine-tune trains until its loss on other harmful advice of the trained domains is down to the organism's stop
    rule, and is measured there (`loss`) and after as many steps as the corrupted model took (`steps`), always without
    steering. Doses are chosen on the selection questions, once at equal loss of the model as it is used
    (`answer_loss`), once at equal loss as training saw it, with steering on (`training_loss`): steering can take the
    data's pressure away so fully that the task is not learned either, which only the former shows. Controls have the
    chosen doses.
    """

    name = "prevent"
    question = "Does steering or a penalty on latents while fine-tuning prevent the misalignment and leave the task?"
    config = PreventionConfig
    needs = frozenset({Need.ORGANISM, Need.TOXIC_LATENT})
    # Each fine-tune is kept under its method and dose, and the last two only choose among them.
    may_change = frozenset({"strengths", "weights", "budget", "target"})

    def measure(self, lab: "Lab[PreventionConfig]") -> Measured:
        from experiments.prevent.measure import measure

        return measure(lab)

    def summarise(self, lab: "Lab[PreventionConfig]", measured: Measured) -> dict[str, Any]:
        from experiments.prevent.summary import summarise

        return summarise(measured.facts, lab.config.target, measured.config["stop_loss"])

    def sentences(self, result: Result) -> list[str]:
        from experiments.prevent.summary import findings

        return findings(result.summary)

    def sections(self, result: Result) -> list[Section]:
        from experiments.prevent.summary import NOTE, table_rows

        return [Section("All fine-tunes", table_rows(result.tables["prevention"]), NOTE)]

    def figures(self, result: Result) -> "list[PaperFigure]":
        from experiments.prevent.figures import chosen_doses, loss_and_harm

        table = result.tables["prevention"]
        return [loss_and_harm(table, result.summary["stop_loss"]), chosen_doses(table)]


EXPERIMENT = Prevent()
