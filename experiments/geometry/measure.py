"""Every model's geometry at one place, with intervals, and tables over all models and places."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from activations.errors import UserError
from diffing.personality.config import TraitPositions
from diffing.personality.model_geometry import Geometry, cosine_table_of, model_geometry, trait_table
from diffing.personality.question_bootstrap import Intervals, Resampled
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig
from experiments.geometry.generator import generator_cosines, generator_table
from experiments.geometry.latents import latent_table, toxic_table
from experiments.geometry.mean_shift import shift_table
from experiments.geometry.stability import null_table, stability_table


@dataclass(frozen=True)
class Facts:
    """What summary and figures need beyond the tables.

    Attributes:
        positions, hook: The place that geometries and intervals are of.
        geometries: By model, the base first.
        intervals: By model, over resampled questions.
        generator: Cosines of the traits in the organism's world [trait trait]; None where it is not known.
    """

    positions: TraitPositions
    hook: str
    geometries: Mapping[str, Geometry]
    intervals: Mapping[str, Intervals]
    generator: pd.DataFrame | None


def measure(lab: Lab[GeometryConfig]) -> Measured:
    """Compares every model's space with the base's.

    Raises:
        UserError: if there are no directions at the positions or the hook, or too few traits.
    """
    known, (at, hook) = lab.trait_directions, _place(lab)
    found = {space.name: model_geometry(known, space, at, hook) for space in known.spaces}
    resampled = {
        space.name: Resampled.of(known, space, (at, hook), lab.config.replicates, lab.seed) for space in known.spaces
    }
    base = resampled[known.base.name]
    intervals = {name: Intervals.of(one, base) for name, one in resampled.items()}
    generator = generator_cosines(lab)
    tables = {
        "traits": trait_table(known.valence, found, intervals),
        "cosines": cosine_table_of(found, intervals),
        "stability": stability_table(lab),
        "nulls": null_table(lab),
        "generator": generator_table(lab, generator),
        "latents": latent_table(lab),
        "toxic": toxic_table(lab),
        "shift": shift_table(lab, hook),
    }
    return Measured(tables, Facts(at, hook, found, intervals, generator))


def _place(lab: Lab[GeometryConfig]) -> tuple[TraitPositions, str]:
    """Positions and hook that figures and axes are about."""
    at, folder, base = lab.config.positions, lab.trait_directions.folder, lab.trait_directions.base.config
    if at not in base["best_hook"]:
        raise UserError(
            f"No directions at {at} in {folder}, only at {', '.join(base['best_hook'])}; choose one of them, or make "
            f"others with `sae-diff trait-directions --positions {at}`."
        )
    hook = lab.config.hook or base["best_hook"][at]
    if hook not in base["hooks"]:
        raise UserError(f"No directions at {hook} in {folder}, only at {', '.join(base['hooks'])}; choose one of them.")
    return at, hook
