"""p values of draws under a null, and false discovery rates."""

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.stats import false_discovery_control

# Equal up to rounding: a permutation or a flip that changes nothing must count as a hit.
_TIE = 1e-12


def monte_carlo_p(reached: Bool[np.ndarray, "draw *test"]) -> Float64[np.ndarray, "*test"]:
    """p of what so many draws under the null reach, the observation counted in (Phipson & Smyth 2010)."""
    return np.asarray((1 + reached.sum(0)) / (1 + len(reached)))


def upper_p(observed: float, null: Float64[np.ndarray, "draw"]) -> float:
    """One-sided p of draws that reach what was observed."""
    return float(monte_carlo_p(null >= observed - _TIE))


def sign_flip_p(
    observed: Float64[np.ndarray, "latent"],
    flips: Float64[np.ndarray, "replicate latent"],
    chosen: Int[np.ndarray, "chosen"],
) -> Float64[np.ndarray, "latent"]:
    """Two-sided permutation p of the chosen latents' sums, NaN for all others.

    The chosen ones were selected by the same data, so these p are post-selection: they check a screening, they do not
    replace its q.
    """
    p = np.full(len(observed), np.nan)
    p[chosen] = monte_carlo_p(np.abs(flips[:, chosen]) >= np.abs(observed[chosen]) * (1 - _TIE))
    return p


def benjamini_hochberg(p: Float64[np.ndarray, "latent"]) -> Float64[np.ndarray, "latent"]:
    """False-discovery-rate adjusted q-values (Benjamini & Hochberg 1995); a NaN p is no test and stays NaN."""
    tested = ~np.isnan(p)
    q = np.full(len(p), np.nan)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return q
