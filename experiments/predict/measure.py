"""Measures a set of fine-tunes, and predicts them from what their latents show."""

from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.predict.config import PredictConfig
from experiments.predict.forecast import Analysis
from experiments.predict.members import base_reading, measure_members


def measure(lab: Lab[PredictConfig]) -> Measured:
    """One row a model (see `Analysis.table`).

    Raises:
        UserError: as `measure_members` and `Analysis.of` do.
    """
    analysis = Analysis.of(measure_members(lab), lab.config, lab.seed)
    return Measured({"predictions": analysis.table(base_reading(lab), lab.direction)}, analysis)
