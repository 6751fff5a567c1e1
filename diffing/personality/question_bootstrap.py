"""How sure cosines, the valence axis and PC1 are: 95% intervals over resampled questions.

The questions of every trait are resampled, and unit directions, SVV and principal components made again. A replicate
has the noise of the questions twice, once from those that were asked and once from the resampling; this pulls cosines
towards 0 and variance away from the first components, so a very high value may lie at the upper end of its interval, or
above.
Where the first two components are about as strong, replicates exchange them, and the intervals of PC1 are wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffing.personality.model_space import ModelSpace
from diffing.personality.trait_directions import TraitDirections
from diffing.personality.valence import PC1, SVV, resampled_directions, resampled_valence
from diffing.statistics.intervals import Interval, percentile_ends, percentile_interval


@dataclass(frozen=True)
class Resampled:
    """A model's directions and axes, replicate by replicate, all of length 1.

    Attributes:
        traits: Names.
        units: Directions; NaN where no drawn question has a difference.
        axes: `SVV`, where there is one, and `PC1`.
        explained: Share of the variance along each component.
    """

    traits: Sequence[str]
    units: Float64[np.ndarray, "replicate trait d_model"]
    axes: Mapping[str, Float64[np.ndarray, "replicate d_model"]]
    explained: Float64[np.ndarray, "replicate component"]

    @classmethod
    def of(
        cls, known: TraitDirections, space: ModelSpace, place: tuple[str, str], replicates: int, seed: int
    ) -> "Resampled":
        """Resamples the questions; the same ones in every model.

        Args:
            known: Has the traits' valences.
            space: The model.
            place: Positions and hook where its directions were read.
            replicates: Number of draws.
            seed: Of the draws.
        """
        positions, hook = place
        traits = known.ordered(space.directions(positions, hook).vectors)
        differences = {trait: space.differences(trait, positions, hook) for trait in traits}
        units = resampled_directions(differences, replicates, seed)
        good, bad = known.pole("prosocial", traits), known.pole("antisocial", traits)
        poles = ([traits.index(trait) for trait in pole] for pole in (good, bad))
        found = resampled_valence(units, *poles)
        axes = ({SVV: found.svv} if found.svv is not None else {}) | {PC1: found.first}
        return cls(traits, units, axes, found.explained)

    def target(self, name: str) -> Float64[np.ndarray, "replicate d_model"]:
        """The direction of a trait, or an axis."""
        return self.axes[name] if name in self.axes else self.units[:, self.traits.index(name)]

    def cosines(self, name: str) -> Float64[np.ndarray, "low_high trait"]:
        """Intervals of the cosine of every trait with a trait or an axis."""
        return ends(np.einsum("rtd,rd->rt", self.units, self.target(name)))

    def cosine_of(self, one: str, two: str, other: "Resampled | None" = None) -> Interval:
        """Interval of the cosine of a trait or an axis with one of the same, or another, model."""
        return percentile_interval((self.target(one) * (other or self).target(two)).sum(1))

    def cosine_with(self, name: str, direction: Float64[np.ndarray, "d_model"]) -> Interval:
        """Interval of the cosine of a trait or an axis with a fixed direction."""
        return percentile_interval(self.target(name) @ (direction / np.linalg.norm(direction)))


@dataclass(frozen=True)
class Intervals:
    """Intervals of everything that is said of one model's space.

    Attributes:
        cosines: Trait or axis -> ends of its cosine with every trait.
        pc1_svv: Of the cosine of PC1 with the SVV; None without one.
        explained: Of the share of the variance along each component.
        with_base: Axis -> of its cosine with the base's, where both models have it.
    """

    cosines: Mapping[str, Float64[np.ndarray, "low_high trait"]]
    pc1_svv: Interval | None
    explained: Float64[np.ndarray, "low_high component"]
    with_base: Mapping[str, Interval]

    @classmethod
    def of(cls, one: Resampled, base: Resampled) -> "Intervals":
        """The intervals of one model."""
        return cls(
            {name: one.cosines(name) for name in (*one.traits, *one.axes)},
            one.cosine_of(PC1, SVV) if SVV in one.axes else None,
            ends(one.explained),
            {axis: one.cosine_of(axis, axis, base) for axis in one.axes if axis in base.axes},
        )


def ends(draws: Float64[np.ndarray, "replicate value"]) -> Float64[np.ndarray, "low_high value"]:
    """Efron's 95% percentile interval of every value, of the replicates in which all traits have a direction."""
    return np.stack(percentile_ends(draws[~np.isnan(draws).any(1)]))
