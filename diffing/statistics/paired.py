"""Paired differences of prompts that stream by: moments, and replicates with weights of their own.

Memory is replicates x latents. A prompt's weights are drawn from a hash of its id, so neither the order of the prompts
nor their distribution over shards changes a digit's meaning: equal seeds and prompts give equal replicates.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash
from jaxtyping import Float64
from scipy.special import stdtr
from torch import Tensor

# Values of [prompt latent] that are gathered before they are added to the replicates.
_GATHERED_VALUES = 2**23


class Moments:
    """Running mean and squared deviations of rows (Chan et al. 1983)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)

    def add(self, rows: Float64[Tensor, "rows width"]) -> None:
        if not len(rows):
            return
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        count = self.count + len(rows)
        apart = mean - self.mean
        self.mean = self.mean + apart * (len(rows) / count)
        self.squares = self.squares + squares + apart.square() * (self.count * len(rows) / count)
        self.count = count

    def paired_t(self) -> tuple[Float64[np.ndarray, "width"], Float64[np.ndarray, "width"]]:
        """Student's t of the mean and its two-sided p.

        A column whose values are all zero has t = 0 and p = 1; all equal but not zero, t = +-inf and p = 0.
        """
        mean, deviation = self.mean.numpy(), np.sqrt(self.squares.numpy() / (self.count - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(mean == 0, 0.0, mean / (deviation / np.sqrt(self.count)))
        return t, 2 * stdtr(self.count - 1, -np.abs(t))


class Replicates:
    """Means of the same differences under other weights: bootstrap (Poisson) and sign flips.

    Args:
        replicates: Number of each kind.
        latents: Number of latents.
        seed: Of the weights.
    """

    def __init__(self, replicates: int, latents: int, seed: int) -> None:
        self._replicates, self._seed = replicates, seed
        self._sums = torch.zeros(2 * replicates, latents, dtype=torch.float64)
        self._weights = torch.zeros(replicates, dtype=torch.float64)
        self._gathered: list[Tensor] = []
        self._drawn: list[Tensor] = []
        self._most = max(1, _GATHERED_VALUES // latents)

    def add(self, ids: Sequence[str], differences: Float64[Tensor, "prompt latent"]) -> None:
        """Differences of the prompts `ids`."""
        self._gathered.append(differences)
        self._drawn += [self._draw(name) for name in ids]
        if len(self._drawn) >= self._most:
            self._flush()

    def bootstrap(self) -> Float64[np.ndarray, "replicate latent"]:
        """Means over prompts resampled with Poisson(1) weights."""
        self._flush()
        return (self._sums[: self._replicates] / self._weights[:, None].clamp_min(1)).numpy()

    def sign_flips(self) -> Float64[np.ndarray, "replicate latent"]:
        """Sums in which each prompt's models were swapped with probability 1/2."""
        self._flush()
        return self._sums[self._replicates :].numpy()

    def _draw(self, prompt_id: str) -> Float64[Tensor, "both_kinds"]:
        digest = xxhash.xxh3_64(prompt_id.encode(), seed=self._seed).intdigest()
        draw = np.random.Generator(np.random.Philox(key=digest))
        signs = draw.integers(0, 2, self._replicates) * 2.0 - 1.0
        return torch.from_numpy(np.concatenate([draw.poisson(1.0, self._replicates), signs]))

    def _flush(self) -> None:
        if not self._gathered:
            return
        weights = torch.stack(self._drawn, 1)
        self._sums.addmm_(weights, torch.cat(self._gathered))
        self._weights += weights[: self._replicates].sum(1)
        self._gathered, self._drawn = [], []
