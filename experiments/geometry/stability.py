"""Is the base's space the same in another model, and is it closer than random directions, other names, other layers?"""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from diffing.personality.model_space import ModelSpace
from diffing.personality.similarity import (
    Rsa,
    beside_nulls,
    principal_angles,
    rsa,
    similarity_nulls,
    space_similarity,
)
from diffing.personality.spaces import trait_matrix
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig


def stability_table(lab: Lab[GeometryConfig]) -> pd.DataFrame:
    """How like the base's space every other model's is: one row a model, positions and hook."""
    rows, config, known = [], lab.config, lab.trait_directions
    places = known.places(known.others)
    for space, at, hook in tqdm(places, desc="stability", disable=not lab.progress, leave=False):
        traits, base, other = _matched(known.base, space, at, hook)
        found = rsa(base, other, config.permutations, config.replicates, lab.seed)
        angles = np.degrees(principal_angles(base, other))
        row = {"model": space.name, "positions": at, "hook": hook, "traits": len(traits), **rsa_row(found)}
        measures = {k: v for k, v in asdict(space_similarity(base, other)).items() if k != "rsa"}
        rows.append({**row, **measures, "smallest_angle": angles[0], "largest_angle": angles[-1]})
    return pd.DataFrame(rows)


def null_table(lab: Lab[GeometryConfig]) -> pd.DataFrame:
    """Every measure compared with its nulls, at the base's best hook of every positions.

    Kinds: those of `similarity_nulls`, and "other layer": the base at this hook against the other model at each other.
    """
    parts, config, known = [], lab.config, lab.trait_directions
    pairs = [(space, at) for space in known.others for at in space.config["positions"]]
    for space, at in tqdm(pairs, desc="nulls", disable=not lab.progress, leave=False):
        hook = known.base.config["best_hook"].get(at)
        if hook is None:
            continue
        _, base, other = _matched(known.base, space, at, hook)
        nulls = similarity_nulls(base, other, config.draws, lab.seed, space.rows(at, hook))
        layers = [name for name in space.config["hooks"] if name != hook]
        elsewhere = (_at_layers(known.base, space, at, hook, name) for name in layers)
        if layers:
            nulls["other layer"] = pd.DataFrame([asdict(space_similarity(*two)) for two in elsewhere])
        table = beside_nulls(space_similarity(base, other), nulls)
        parts.append(table.assign(model=space.name, positions=at, hook=hook))
    return pd.concat(parts, ignore_index=True)


def _matched(
    base: ModelSpace, other: ModelSpace, positions: str, hook: str
) -> tuple[list[str], Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    """The traits that both models have, and their directions in both."""
    return _common(base.directions(positions, hook).vectors, other.directions(positions, hook).vectors)


def _at_layers(
    base: ModelSpace, other: ModelSpace, positions: str, hook: str, elsewhere: str
) -> tuple[Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    return _common(base.directions(positions, hook).vectors, other.directions(positions, elsewhere).vectors)[1:]


def _common(
    one: Mapping[str, Tensor], two: Mapping[str, Tensor]
) -> tuple[list[str], Float64[Tensor, "trait d_model"], Float64[Tensor, "trait d_model"]]:
    traits = sorted(set(one) & set(two))
    return traits, trait_matrix(one, traits), trait_matrix(two, traits)


def rsa_row(found: Rsa) -> dict[str, float]:
    """The columns of an RSA in a table."""
    return {"rsa": found.correlation, "p": found.p, "low": found.low, "high": found.high}
