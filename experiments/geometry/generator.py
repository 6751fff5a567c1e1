"""Is the recovered geometry the one that the organism's world was written with?"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from tqdm import tqdm

from diffing.geometry import cosine_matrix
from diffing.personality.similarity import rsa_with_matrix
from diffing.personality.spaces import trait_matrix
from diffing.personality.valence import resampled_directions
from diffing.statistics.intervals import percentile_interval
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig
from experiments.geometry.stability import rsa_row
from experiments.organism.trait_levels import trait_levels
from experiments.organism.world import World


def generator_cosines(lab: Lab[GeometryConfig]) -> pd.DataFrame | None:
    """Cosines of the traits' bundles of personas [trait trait]; None if the world is not known."""
    world = World.load()
    if lab.run.config.organism is None or not set(lab.trait_directions.valence) <= set(world.traits):
        return None
    known = cosine_matrix(torch.from_numpy(trait_levels(world))).numpy()
    return pd.DataFrame(known, index=pd.Index(list(world.traits)), columns=pd.Index(list(world.traits)))


def generator_table(lab: Lab[GeometryConfig], generator: pd.DataFrame | None) -> pd.DataFrame:
    """RSA of every model's directions against the world's own geometry; empty where the world is not known.

    `low` and `high` are over resampled traits. `question_low` and `question_high`, at every positions' best hook: over
    resampled questions, which is the noise in the directions.
    """
    rows, config, found = [], lab.config, lab.trait_directions
    if generator is None:
        return pd.DataFrame(columns=pd.Index(["model", "positions", "hook", "rsa", "p", "low", "high"]))
    for space, at, hook in tqdm(found.places(found.spaces), desc="generator", disable=not lab.progress, leave=False):
        vectors = space.directions(at, hook).vectors
        traits = found.ordered(vectors)
        if len(traits) < 4:
            continue
        known = generator.loc[traits, traits].to_numpy()
        matrix = trait_matrix(vectors, traits)
        agreement = rsa_with_matrix(matrix, known, config.permutations, config.replicates, lab.seed)
        row = {"model": space.name, "positions": at, "hook": hook, "traits": len(traits), **rsa_row(agreement)}
        if hook == found.base.config["best_hook"].get(at):
            differences = {trait: space.differences(trait, at, hook) for trait in traits}
            low, high = _question_interval(differences, known, config.draws, lab.seed)
            row |= {"question_low": low, "question_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _question_interval(
    differences: Mapping[str, Float64[np.ndarray, "question d_model"]],
    known: Float64[np.ndarray, "trait trait"],
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """RSA with the generator when the questions are resampled, trait by trait."""
    drawn = resampled_directions(differences, draws, seed)
    whole = drawn[~np.isnan(drawn).any((1, 2))]
    found = [rsa_with_matrix(torch.from_numpy(units), known, 1, 1, seed).correlation for units in whole]
    return percentile_interval(np.array(found))
