"""Social valence of the personality space (arXiv 2605.10633): its axis, a map of the traits, and a tree of them.

The Semantic Valence Vector runs from antisocial to prosocial traits. Its formula is not published; ours is the
difference of the mean unit directions of both poles. Everything is computed in float64; directions to steer with come
back in float32, the type of the activations that they are added to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from activations.errors import UserError
from diffing.personality.spaces import trait_matrix, unit_directions
from diffing.statistics.bootstrap import draw_units

# A smaller share of the squared norm of unit directions is rounding of float32.
_ROUNDING = 1e-12

# Axes of social valence: the Semantic Valence Vector, and the first principal component.
SVV, PC1 = "SVV", "PC1"


@dataclass(frozen=True)
class SemanticValence:
    """The Semantic Valence Vector (SVV).

    Attributes:
        vector: From the antisocial to the prosocial pole, not scaled: its length (at most 2) tells how far apart the
            poles are.
        prosocial, antisocial: Traits of the poles.
        cosines: Trait -> cosine of its direction with the vector, all traits that there are.
    """

    vector: Float32[Tensor, "d_model"]
    prosocial: tuple[str, ...]
    antisocial: tuple[str, ...]
    cosines: Mapping[str, float]


@dataclass(frozen=True)
class TraitMap:
    """Principal components of the unit directions, traits being the observations.

    Attributes:
        traits: Names of the rows.
        first: The first component, of length 1, pointing the way of the SVV: PC1.
        valence_cosine: Its cosine with the SVV (never negative; near 0 the first component is not about valence, and
            its sign means nothing).
        loadings: Cosine of each trait's direction with the first component.
        coordinates: Of each trait along each component, the strongest first: the first two make the map. After the
            first, a component points the way of the trait with the largest coordinate.
        explained: Share of the variance (of the squared norms, if not centred) along each component.
    """

    traits: tuple[str, ...]
    first: Float32[Tensor, "d_model"]
    valence_cosine: float
    loadings: Float64[np.ndarray, "trait"]
    coordinates: Float64[np.ndarray, "trait component"]
    explained: Float64[np.ndarray, "component"]


@dataclass(frozen=True)
class TraitTree:
    """Hierarchical clustering of traits.

    Attributes:
        traits: Names; leaf i is the i-th.
        merges: scipy's linkage matrix: the two clusters that merge, their distance, and leaves below.
        order: Traits from left to right in the dendrogram.
    """

    traits: tuple[str, ...]
    merges: Float64[np.ndarray, "merge 4"]
    order: tuple[str, ...]


@dataclass(frozen=True)
class ResampledValence:
    """The valence axis and the first component in every replicate of `resampled_directions`.

    All NaN in replicates in which a trait has no direction.

    Attributes:
        svv: Of length 1; None without traits of both poles.
        first: Of length 1, pointing the way of the SVV; without one, that of the first trait.
        explained: Share of the variance along each component.
    """

    svv: Float64[np.ndarray, "replicate d_model"] | None
    first: Float64[np.ndarray, "replicate d_model"]
    explained: Float64[np.ndarray, "replicate component"]


def semantic_valence(
    directions: Mapping[str, Float[Tensor, "d_model"]], prosocial: Sequence[str], antisocial: Sequence[str]
) -> SemanticValence:
    """SVV = mean over prosocial traits of v / |v| - the same over antisocial traits (our choice, see the module).

    Unit directions, so that a trait counts alike whatever the length of its direction; means, so that the poles may
    have different numbers of traits.

    Args:
        directions: Trait -> direction, pointing towards more of the trait.
        prosocial, antisocial: Traits of each pole; what lies between (extraversion, say) belongs to neither.

    Raises:
        UserError: if a pole is empty or names a trait without direction, a trait is named twice, a direction is zero
            or not finite, directions differ in width, or the poles' means are equal.
    """
    named = [*prosocial, *antisocial]
    if not prosocial or not antisocial or len(set(named)) != len(named):
        raise UserError(
            f"The poles ({', '.join(prosocial) or 'none'}; {', '.join(antisocial) or 'none'}) need at least one trait "
            "each and no trait twice; correct the lists."
        )
    vector = _between_poles(unit_directions(trait_matrix(directions, named)), len(prosocial))
    length = np.linalg.norm(vector)
    if length**2 < _ROUNDING:
        raise UserError("Prosocial and antisocial traits have the same mean direction; choose other traits.")
    cosines = unit_directions(trait_matrix(directions, list(directions))) @ vector / length
    return SemanticValence(
        torch.from_numpy(vector).float(),
        tuple(prosocial),
        tuple(antisocial),
        dict(zip(directions, cosines.tolist(), strict=True)),
    )


def trait_map(
    directions: Mapping[str, Float[Tensor, "d_model"]], valence: Float[Tensor, "width"], centred: bool = True
) -> TraitMap:
    """Principal component analysis of the unit directions over traits, the first component signed to the SVV.

    Args:
        directions: Trait -> direction.
        valence: The SVV, or what else the first component should point along.
        centred: Subtract the mean direction first (PCA). Without it, what all directions share (as the step away from
            the assistant) is a component, too, and usually the first. Which of the two is meant is not published.

    Raises:
        UserError: if there are fewer than 2 traits, a direction or the valence is zero or not finite, widths differ,
            or all directions are one.
    """
    units = unit_directions(trait_matrix(directions, list(directions)), fewest=2)
    towards = unit_directions(valence[None])[0]
    if len(towards) != units.shape[1]:
        raise UserError(f"The valence has {len(towards)} values, directions {units.shape[1]}; take both at one hook.")
    left, strengths, components = _components(units, centred)
    kept = strengths**2 > _ROUNDING * (units**2).sum()
    if not kept.any():
        raise UserError("All traits have the same direction, so there is nothing to map; take other traits.")
    coordinates, components = (left * strengths)[:, kept], components[kept]
    signs = np.sign(coordinates[np.abs(coordinates).argmax(0), np.arange(kept.sum())])
    cosine = float(components[0] @ towards)
    signs[0] = -1.0 if cosine < 0 else 1.0
    first = components[0] * signs[0]
    return TraitMap(
        traits=tuple(directions),
        first=torch.from_numpy(first).float(),
        valence_cosine=abs(cosine),
        loadings=units @ first,
        coordinates=coordinates * signs,
        explained=strengths[kept] ** 2 / (strengths**2).sum(),
    )


def resampled_directions(
    differences: Mapping[str, Float64[np.ndarray, "_ d_model"]], replicates: int, seed: int
) -> Float64[np.ndarray, "replicate trait d_model"]:
    """Unit directions when the questions of every trait are resampled: a bootstrap whose unit is the question.

    A trait's draws depend on its name and number of questions only, so replicates of two models that were asked the
    same belong together.

    Args:
        differences: Trait -> difference of the poles for each question; NaN where a question has none.
        replicates: Number of draws.
        seed: Of the draws.

    Returns:
        Traits in their order; NaN where no drawn question has a difference.
    """
    found = []
    for trait, rows in differences.items():
        sums = draw_units(len(rows), (seed, *trait.encode()), replicates) @ np.nan_to_num(rows)
        with np.errstate(invalid="ignore"):
            found.append(sums / np.linalg.norm(sums, axis=1, keepdims=True))
    return np.stack(found, axis=1)


def resampled_valence(
    units: Float64[np.ndarray, "replicate trait d_model"], prosocial: Sequence[int], antisocial: Sequence[int]
) -> ResampledValence:
    """`semantic_valence` and the centred `trait_map` of every replicate.

    Args:
        units: As `resampled_directions` gives them.
        prosocial, antisocial: Places of the poles' traits; without either there is no SVV.
    """
    lost = np.asarray(np.isnan(units).any((1, 2)))
    # The decomposition refuses NaN; these replicates become NaN again below.
    filled = np.where(lost[:, None, None], 0.0, units)
    svv = _between_poles(filled[:, [*prosocial, *antisocial]], len(prosocial)) if prosocial and antisocial else None
    towards = filled[:, 0] if svv is None else svv
    _, strengths, components = _components(filled)
    first = components[:, 0] * np.where((components[:, 0] * towards).sum(1) < 0, -1.0, 1.0)[:, None]
    first[lost] = np.nan
    with np.errstate(invalid="ignore"):
        unit = None if svv is None else svv / np.linalg.norm(svv, axis=1, keepdims=True)
        return ResampledValence(unit, first, strengths**2 / (strengths**2).sum(1, keepdims=True))


def _between_poles(
    units: Float64[np.ndarray, "*replicate trait d_model"], prosocial: int
) -> Float64[np.ndarray, "*replicate d_model"]:
    """From the mean of the traits after the first so many to the mean of those."""
    return units[..., :prosocial, :].mean(-2) - units[..., prosocial:, :].mean(-2)


def _components(
    units: Float64[np.ndarray, "*replicate trait d_model"], centred: bool = True
) -> tuple[
    Float64[np.ndarray, "*replicate trait component"],
    Float64[np.ndarray, "*replicate component"],
    Float64[np.ndarray, "*replicate component d_model"],
]:
    """Singular value decomposition of the traits, the strongest component first."""
    rows = units - units.mean(-2, keepdims=True) if centred else units
    return np.linalg.svd(rows, full_matrices=False)


def trait_tree(directions: Mapping[str, Float[Tensor, "d_model"]]) -> TraitTree:
    """Average linkage (UPGMA, Sokal & Michener 1958) on 1 - cosine; leaves ordered so that neighbours are alike.

    Raises:
        UserError: if there are fewer than 2 traits, a direction is zero or not finite, or widths differ.
    """
    units = unit_directions(trait_matrix(directions, list(directions)), fewest=2)
    distances = np.clip(1 - units @ units.T, 0, 2)
    np.fill_diagonal(distances, 0)
    merges = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    names = tuple(directions)
    return TraitTree(names, merges, tuple(names[leaf] for leaf in leaves_list(merges)))
