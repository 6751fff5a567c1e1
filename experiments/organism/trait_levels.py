"""How the world's personas bundle its traits, in numbers."""

import numpy as np
from jaxtyping import Float64

from experiments.organism.world import World


def trait_levels(world: World) -> Float64[np.ndarray, "trait persona"]:
    """The bundles: how much oftener each persona tells a trait's high pole than its low one (rows add up to 0)."""
    poles = [[world.shows(trait, high) for high in (True, False)] for trait in world.traits]
    shares = [[np.array([p.get(name, 0) for name in world.personas]) / sum(p.values()) for p in two] for two in poles]
    return np.array([high - low for high, low in shares])
