"""How much of what a fine-tune moved lies in the space of the base's traits?"""

import pandas as pd

from diffing.personality.model_geometry import model_geometry
from diffing.personality.similarity import projection_share
from diffing.statistics.intervals import percentile_interval
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig


def shift_table(lab: Lab[GeometryConfig], hook: str) -> pd.DataFrame:
    """Share of every fine-tune's mean shift on the ranking prompts that lies in the span of the base's directions.

    Compared with spans of as many random directions: isotropic, and with the activations' covariance.
    """
    rows, config, known = [], lab.config, lab.trait_directions
    for at in dict.fromkeys((hook, lab.hook)):
        matrix = model_geometry(known, known.base, config.positions, at).matrix
        activations = known.base.rows(config.positions, at)
        for space in known.others:
            moved = (space.ranking(at).double() - known.base.ranking(at).double()).mean(0)
            if not moved.any():
                continue
            found = projection_share(moved, matrix, config.draws, lab.seed, activations)
            for kind, null in found.nulls.items():
                low, high = percentile_interval(null)
                chance = {"null": kind, "null_mean": null.mean(), "null_low": low, "null_high": high}
                row = {"model": space.name, "hook": at, "norm": float(moved.norm()), "share": found.share}
                rows.append({**row, "dimensions": found.dimensions, **chance, "p": found.p(kind)})
    return pd.DataFrame(rows)
