"""How well an SAE explains activations, and what the model loses when it has to live on the reconstruction.

Where sae-lens 6's `run_evals` measures the same, the numbers are the same; each attribute says how sae-lens calls it.
Both leave special tokens out; `sae.splice` says which those are.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from activations.display import html_table
from activations.errors import UserError
from activations.prompts import NON_SPECIAL
from activations.source import ActivationSource
from activations.tokens import TokenBatch
from sae.splice import ENCODED_ROWS, CrossEntropy, cross_entropy_metrics

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE

    from activations.checkpoint import Checkpoint

# A latent that is active on more than this share of the rows is dense.
DENSE = 0.1
# Histograms have equal bins between these ends; what lies beyond an end counts in the bin next to it.
DENSITY_BINS, DENSITY_ENDS = 12, (-6.0, 0.0)
COSINE_BINS, COSINE_ENDS = 10, (0.0, 1.0)
# Rows shorter than this are divided by 1 in the L2 ratio, as in sae-lens.
_NO_LENGTH = 1e-4


@dataclass(frozen=True)
class Reconstruction:
    """Over the rows x with latents z and reconstructions x' (sums in float64).

    Attributes:
        fvu: sum ||x - x'||^2 / sum ||x - mean||^2, the mean taken over the rows.
        explained_variance: 1 - fvu; sae-lens's `explained_variance` (its `..._legacy` averages that of single rows).
        l0: mean number of active latents, those with z != 0; sae-lens's `l0`.
        l1: mean sum of |z|; sae-lens's `l1`.
        cosine: mean cosine of x and x', 0 where either is zero; sae-lens's `cossim`.
        l2_ratio: mean of ||x'|| / ||x||, below 1 if the SAE shrinks; sae-lens's `l2_ratio`.
        dead_fraction: share of latents that are active on no row.
        dense_fraction: share of latents that are active on more than `DENSE` of the rows.
        density: counts of the latents that are not dead by log10 of the share of rows on which they are active, which
            is sae-lens's `feature_density`: `DENSITY_BINS` bins between `DENSITY_ENDS`.
        rows: number of rows.
    """

    fvu: float
    explained_variance: float
    l0: float
    l1: float
    cosine: float
    l2_ratio: float
    dead_fraction: float
    dense_fraction: float
    density: list[int]
    rows: int


@dataclass(frozen=True)
class SAEMetrics(Reconstruction, CrossEntropy):
    """Both: see `Reconstruction` and `CrossEntropy`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each metric that is a number: `metric` and `value`."""
        import pandas as pd

        numbers = {name: value for name, value in self.to_dict().items() if isinstance(value, int | float)}
        return pd.DataFrame({"metric": list(numbers), "value": [float(value) for value in numbers.values()]})

    def _repr_html_(self) -> str:
        numbers = {name: value for name, value in self.to_dict().items() if isinstance(value, int | float)}
        return html_table(f"SAEMetrics over {self.rows:,} rows", ("metric", "value"), numbers.items())


@dataclass(frozen=True)
class DecoderCosines:
    """Each latent's largest cosine with another's decoder row: near 1 where the SAE has the same direction twice.

    Attributes:
        mean: mean over latents.
        max: largest of all.
        histogram: counts of latents: `COSINE_BINS` bins between `COSINE_ENDS`.
    """

    mean: float
    max: float
    histogram: list[int]


def evaluate_sae(
    sae: "SAE",
    checkpoint: "Checkpoint",
    store: ActivationSource,
    token_batch: TokenBatch,
    hook: str,
    progress: bool = True,
) -> SAEMetrics:
    """Measures an SAE on activations and inside the model.

    Args:
        sae: the SAE, on the checkpoint's device.
        checkpoint: model to splice the SAE into.
        store: activations of `hook` (those of `token_batch` or others); mean ablation takes their mean.
        token_batch: prompts to measure cross-entropy and KL on.
        hook: hook point.
        progress: shows a bar.

    Raises:
        UserError: if there are no non-special rows or none with a token after it, or the model lacks the hook.
    """
    sums = _sum_rows(sae, store, hook)
    spliced = cross_entropy_metrics(sae, checkpoint, token_batch, hook, sums.mean, progress)
    return SAEMetrics(**asdict(sums.metrics()), **asdict(spliced))


def reconstruction_metrics(sae: "SAE", store: ActivationSource, hook: str) -> Reconstruction:
    """Metrics over the non-special rows of a store, in one pass; memory does not grow with the rows.

    Raises:
        UserError: if there are none, or they do not vary.
    """
    return _sum_rows(sae, store, hook).metrics()


@torch.no_grad()
def decoder_cosines(sae: "SAE") -> DecoderCosines:
    """How alike decoder rows are, a block of them at a time: no latent x latent matrix is held."""
    rows = F.normalize(sae.W_dec.float(), dim=1)
    nearest = torch.cat([_nearest(rows, start) for start in range(0, len(rows), ENCODED_ROWS)]).cpu().double()
    return DecoderCosines(
        mean=nearest.mean().item(),
        max=nearest.max().item(),
        histogram=_histogram(nearest.numpy(), COSINE_BINS, COSINE_ENDS),
    )


def _nearest(rows: Float[Tensor, "latent d_model"], start: int) -> Float[Tensor, "block"]:
    """The largest cosine of each row of a block, which begins at `start`, with any other row."""
    cosines = rows[start : start + ENCODED_ROWS] @ rows.T
    cosines.diagonal(start).fill_(-torch.inf)
    return cosines.amax(1)


@torch.no_grad()
def _sum_rows(sae: "SAE", store: ActivationSource, hook: str) -> "_RowSums":
    sums = _RowSums(sae)
    for rows, index in store.chunks(hook):
        chosen = torch.from_numpy(np.isin(index["role"], NON_SPECIAL))
        if chosen.any():
            for part in rows[chosen].split(ENCODED_ROWS):
                sums.add(part.to(sae.device))
    if sums.rows == 0 or sums.variation <= 0:
        raise UserError(f"{store.name} has no non-special rows of {hook} that vary; harvest other prompts.")
    return sums


class _RowSums:
    """Running sums over rows, in float64."""

    def __init__(self, sae: "SAE") -> None:
        self.sae = sae
        self.rows = 0
        self.error = 0.0
        self.l1 = 0.0
        self.cosine = 0.0
        self.l2_ratio = 0.0
        self.variation = 0.0
        self.active = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.device)
        self.mean = torch.zeros(sae.cfg.d_in, dtype=torch.float64, device=sae.device)

    def add(self, x: Float[Tensor, "rows d_model"]) -> None:
        latents = self.sae.encode(x)
        again = self.sae.decode(latents).double()
        exact = x.double()
        length = exact.norm(dim=1)
        self.error += (exact - again).square().sum().item()
        self.l1 += latents.abs().sum(dtype=torch.float64).item()
        self.cosine += F.cosine_similarity(exact, again, dim=1).sum().item()
        self.l2_ratio += (again.norm(dim=1) / length.where(length >= _NO_LENGTH, 1.0)).sum().item()
        self.active += (latents != 0).sum(0)
        self._add_variation(exact)

    def _add_variation(self, x: Float64[Tensor, "rows d_model"]) -> None:
        """Merges the squared distances from the mean of two sets of rows (Chan et al. 1983): nothing cancels."""
        mean = x.mean(0)
        apart = (mean - self.mean).square().sum().item() * self.rows * len(x) / (self.rows + len(x))
        self.variation += (x - mean).square().sum().item() + apart
        self.mean += (mean - self.mean) * len(x) / (self.rows + len(x))
        self.rows += len(x)

    def metrics(self) -> Reconstruction:
        frequency = self.active.cpu().numpy() / self.rows
        fvu = self.error / self.variation
        return Reconstruction(
            fvu=fvu,
            explained_variance=1 - fvu,
            l0=int(self.active.sum()) / self.rows,
            l1=self.l1 / self.rows,
            cosine=self.cosine / self.rows,
            l2_ratio=self.l2_ratio / self.rows,
            dead_fraction=(frequency == 0).mean().item(),
            dense_fraction=(frequency > DENSE).mean().item(),
            density=_histogram(np.log10(frequency[frequency > 0]), DENSITY_BINS, DENSITY_ENDS),
            rows=self.rows,
        )


def _histogram(values: Float64[np.ndarray, "values"], bins: int, ends: tuple[float, float]) -> list[int]:
    return np.histogram(np.clip(values, *ends), bins, ends)[0].tolist()
