"""One model's traits: how they lie to one another, their valence, and how sure that is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from diffing.geometry import cosine_matrix
from diffing.personality.model_space import ModelSpace
from diffing.personality.question_bootstrap import Intervals
from diffing.personality.spaces import trait_matrix
from diffing.personality.trait_directions import TraitDirections
from diffing.personality.valence import (
    PC1,
    SVV,
    SemanticValence,
    TraitMap,
    TraitTree,
    semantic_valence,
    trait_map,
    trait_tree,
)


@dataclass(frozen=True)
class Geometry:
    """One model's space at one hook.

    Attributes:
        traits: Names, in the order of all rows.
        matrix: Directions [trait d_model].
        tree, map: See `trait_tree` and `trait_map`.
        svv: None without traits of both valences; the map's first component then points to the first trait.
    """

    traits: list[str]
    matrix: Float64[Tensor, "trait d_model"]
    tree: TraitTree
    map: TraitMap
    svv: SemanticValence | None

    @property
    def cosines(self) -> Float64[np.ndarray, "trait other"]:
        return cosine_matrix(self.matrix).numpy()

    @property
    def axes(self) -> dict[str, Tensor]:
        """The SVV, where there is one, and the first principal component."""
        return ({SVV: self.svv.vector} if self.svv is not None else {}) | {PC1: self.map.first}


def model_geometry(known: TraitDirections, space: ModelSpace, positions: str, hook: str) -> Geometry:
    """Cosines, tree, map and valence of one model's directions.

    Raises:
        UserError: as the parts do, for too few traits.
    """
    vectors = space.directions(positions, hook).vectors
    traits = known.ordered(vectors)
    directions = {trait: vectors[trait] for trait in traits}
    poles = known.pole("prosocial", traits), known.pole("antisocial", traits)
    svv = semantic_valence(directions, *poles) if all(poles) else None
    towards = svv.vector if svv is not None else next(iter(directions.values()))
    matrix = trait_matrix(directions, traits)
    return Geometry(traits, matrix, trait_tree(directions), trait_map(directions, towards), svv)


def trait_table(
    valence: Mapping[str, str | None], found: Mapping[str, Geometry], intervals: Mapping[str, Intervals]
) -> pd.DataFrame:
    """One row a model and trait: cosine with the SVV, loading on PC1, place on the map.

    `svv_low`, `svv_high`, `pc1_low`, `pc1_high`: over resampled questions.
    """
    rows = []
    for model, one in found.items():
        coordinates = one.map.coordinates[:, :2]
        for i, trait in enumerate(one.traits):
            row = {"model": model, "trait": trait, "valence": valence[trait]}
            place = {"pc1": one.map.loadings[i], "x": coordinates[i, 0], "y": coordinates[i, -1]}
            rows.append(row | place | {"svv": one.svv.cosines[trait] if one.svv else np.nan})
            for name, axis in (("svv", SVV), ("pc1", PC1)):
                low, high = intervals[model].cosines[axis][:, i] if axis in one.axes else (np.nan, np.nan)
                rows[-1] |= {f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(rows)


def cosine_table_of(found: Mapping[str, Geometry], intervals: Mapping[str, Intervals]) -> pd.DataFrame:
    """One row a model and pair of traits; `low`, `high`: over resampled questions."""
    rows = []
    for model, one in found.items():
        for i, j in zip(*np.triu_indices(len(one.traits), 1), strict=True):
            pair = {"trait": one.traits[i], "other": one.traits[j]}
            low, high = intervals[model].cosines[one.traits[i]][:, j]
            rows.append({"model": model, **pair, "cosine": float(one.cosines[i, j]), "low": low, "high": high})
    return pd.DataFrame(rows)
