"""Answers the three questions, after checking that there is what they need."""

from activations.errors import UserError
from experiments.frame.experiment import Measured
from experiments.monitor.answers import LAST, MonitorLab
from experiments.monitor.before_answers import before_answers
from experiments.monitor.screening import screening
from experiments.monitor.shifts import shifts


def measure(lab: MonitorLab) -> Measured:
    """The tables of all parts; without fine-tunes there are none of shifts, without data none of the screening.

    Raises:
        UserError: if nobody scores the answers, or the trait directions are those of other traits or positions.
    """
    lab.require_trait_judge()
    made, folder = lab.trait_directions.config, lab.trait_directions.folder
    if [trait.name for trait in lab.traits] != made["traits"]:
        raise UserError(f"{folder} holds other traits ({', '.join(made['traits'])}); name their sets with --traits.")
    if missing := [at for at in (LAST, *lab.config.positions) if at not in made["positions"]]:
        raise UserError(
            f"{folder} has no directions at {missing[0]}; make them with `sae-diff trait-directions --positions "
            f"{missing[0]}`."
        )
    return Measured({**before_answers(lab), **shifts(lab), **screening(lab)})
