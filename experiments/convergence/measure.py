"""Measures directions of fine-tunes, how much they agree, and what treating models with them does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from diffing.behavior.rates import LabelCounts
from diffing.directions.misalignment import Contrast
from diffing.steering.transfer import Treatment
from experiments.convergence.compare import compare_adapters, compare_directions
from experiments.convergence.config import FINE_TUNE, HARMLESS, ConvergenceConfig
from experiments.convergence.members import choose_members, directions_of, find_means
from experiments.convergence.treat import choose_treatments, sweep, transfer
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.frame.trials import TreatmentOutcome


@dataclass(frozen=True)
class Facts:
    """What the summary needs beyond the tables.

    Attributes:
        kinds: Kind of each misaligned fine-tune.
        base: Label counts of the untouched base on the reporting questions.
        transferred: What `transfer` returns.
        chosen: What `choose_treatments` returns.
    """

    kinds: Mapping[str, str]
    base: LabelCounts
    transferred: Sequence[TreatmentOutcome]
    chosen: Sequence[tuple[Contrast, Treatment]]


def measure(lab: Lab[ConvergenceConfig]) -> Measured:
    """Tables "cosines", "sweep", "transfer" and "adapters"; answers that an earlier call sampled are used again.

    Raises:
        UserError: as `choose_members` does.
    """
    trials = lab.trials(lab.config.samples, lab.config.controls)
    tuned, harmless = choose_members(lab, trials)
    means = {one.name: find_means(lab, trials, one, tuned[0]) for one in (*tuned, *harmless)}
    directions = [found for one in tuned for found in directions_of(one.name, FINE_TUNE, means[one.name])]
    directions += [found for one in harmless for found in directions_of(one.name, HARMLESS, means[one.name])]
    swept = sweep(lab, trials, tuned, directions)
    chosen = choose_treatments(swept, lab.config.budget)
    transferred = transfer(lab, trials, tuned, directions, chosen)
    tables = {
        "cosines": compare_directions(lab, directions, means),
        "sweep": pd.DataFrame([outcome.row() for outcome in swept]),
        "transfer": pd.DataFrame([outcome.row() for outcome in transferred]),
        "adapters": compare_adapters(lab, directions),
    }
    kinds = {one.name: one.member.kind for one in tuned}
    facts = Facts(kinds, trials.untouched(lab.base, lab.reporting), transferred, chosen)
    return Measured(tables, facts, {"hooks": list(lab.hooks)})
