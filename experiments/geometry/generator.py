"""Is the recovered geometry the one that the organism's world was written with?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from tqdm import tqdm

from diffing.personality.model_space import ModelSpace
from diffing.personality.similarity import rsa_with_matrix
from diffing.personality.spaces import trait_matrix
from diffing.personality.valence import resampled_directions
from diffing.statistics.intervals import percentile_interval
from experiments.geometry.config import GeometryConfig
from experiments.geometry.spaces import Spaces
from experiments.geometry.stability import rsa_row


def generator_table(spaces: Spaces, config: GeometryConfig, progress: bool) -> pd.DataFrame:
    """RSA of every model's directions against the world's own geometry; empty where the world is not known.

    `low` and `high` are over resampled traits. `question_low` and `question_high`, at every positions' best hook: over
    resampled questions, which is the noise in the directions.
    """
    rows = []
    if spaces.generator is None:
        return pd.DataFrame(columns=pd.Index(["model", "positions", "hook", "rsa", "p", "low", "high"]))
    for space, at, hook in tqdm(spaces.places(spaces.models), desc="generator", disable=not progress, leave=False):
        traits = spaces.traits(space.directions(at, hook).vectors)
        if len(traits) < 4:
            continue
        known = spaces.generator.loc[traits, traits].to_numpy()
        matrix = trait_matrix(space.directions(at, hook).vectors, traits)
        found = rsa_with_matrix(matrix, known, config.permutations, config.replicates, spaces.seed)
        row = {"model": space.name, "positions": at, "hook": hook, "traits": len(traits), **rsa_row(found)}
        if hook == spaces.base.config["best_hook"].get(at):
            low, high = _question_interval(space, at, hook, traits, known, config.draws, spaces.seed)
            row |= {"question_low": low, "question_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _question_interval(
    space: ModelSpace,
    positions: str,
    hook: str,
    traits: Sequence[str],
    known: Float64[np.ndarray, "trait trait"],
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """RSA with the generator when the questions are drawn anew, trait by trait."""
    differences = {trait: space.differences(trait, positions, hook) for trait in traits}
    drawn = resampled_directions(differences, draws, seed)
    whole = drawn[~np.isnan(drawn).any((1, 2))]
    found = [rsa_with_matrix(torch.from_numpy(units), known, 1, 1, seed).correlation for units in whole]
    return percentile_interval(np.array(found))
