"""The sparse engine of a TopK SAE: one encode product, an exact top-k, and backward through active latents only.

Every sum over active latents is an `embedding_bag`: decoding sums the decoder rows of one input's latents; a weight
gradient sums, for one latent, the inputs (or output gradients) at which it was active. Nothing of size
[batch latent] is kept for backward, and no dense product runs there.

Weights are [latent d_model] for encoder and decoder alike (sae-lens keeps `W_enc` transposed).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Pre-activations are made and searched in blocks of rows: on a CPU a block stays in the cache (4 MB in float32).
BLOCK_ELEMENTS = {"cpu": 1 << 20}
BLOCK_ELEMENTS_ACCELERATOR = 1 << 29
# The search for the largest k first compares the maxima of groups of this many latents (fastest of 2, 4, 8, 16).
GROUP = 4


@dataclass(frozen=True)
class ActiveLatents:
    """The latents chosen for each input: `values` after the ReLU, `indices` into the latents; both [batch k]."""

    values: Float[Tensor, "batch k"]
    choice: "Choice"

    @property
    def indices(self) -> Int[Tensor, "batch k"]:
        return self.choice.indices


@dataclass(frozen=True)
class Choice:
    """Which latents were chosen, and (once asked for) the same pairs grouped by latent."""

    indices: Int[Tensor, "batch k"]
    latents: int

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Int[Tensor, "latent"]]:
        """Pairs (input, latent) sorted by latent: their order, their inputs, and where each latent's pairs begin."""
        flat = self.indices.flatten()
        # Stable, so that the order of summation, and so the last bit of a gradient, never varies.
        order = flat.to(torch.int32).sort(stable=True).indices
        counts = torch.bincount(flat, minlength=self.latents)
        return order, order // self.indices.shape[1], counts.cumsum(0) - counts

    def sum_by_latent(
        self, rows: Float[Tensor, "batch d_model"], weights: Float[Tensor, "batch k"]
    ) -> Float[Tensor, "latent d_model"]:
        """For each latent, the sum of the rows at which it was chosen, weighted; zero for latents never chosen."""
        order, inputs, starts = self.by_latent
        return F.embedding_bag(inputs, rows, starts, mode="sum", per_sample_weights=weights.flatten()[order])


def topk_encode(
    x: Float[Tensor, "batch d_model"],
    w_enc: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, "latent"],
    k: int,
) -> ActiveLatents:
    """The k largest of `x @ w_enc.T + bias` for each input, after a ReLU; differentiable in `w_enc` and `bias`.

    `x` is data: no gradient reaches it (a pre-encoder bias belongs in `bias`).
    """
    choice, values = _select(x, w_enc, bias, k)
    return ActiveLatents(_ActiveValues.apply(x, w_enc, bias, values, choice), choice)


def sparse_decode(active: ActiveLatents, w_dec: Float[Tensor, "latent d_model"]) -> Float[Tensor, "batch d_model"]:
    """Sum of the active latents' decoder rows, weighted by their values; differentiable in values and `w_dec`."""
    return _SparseDecode.apply(active.values, w_dec, active.choice)  # pyright: ignore[reportReturnType]


def topk_indices(pre: Float[Tensor, "batch latent"], k: int) -> Int[Tensor, "batch k"]:
    """Indices of the k largest entries of each row, in no particular order; exact.

    On a CPU `torch.topk` costs more than the encode product of a small SAE. The k largest entries lie in the k groups
    with the largest maxima, so only those groups are searched, recursively; numpy's vectorised partition does the rest.
    """
    if pre.device.type != "cpu":
        return pre.topk(k, dim=1, sorted=False).indices
    latents = pre.shape[1]
    groups = latents // GROUP
    if latents % GROUP or groups < 2 * k:
        return _partition_indices(pre, k)
    # Group g holds the latents g, g + groups, g + 2 * groups, ...: the maximum then runs along contiguous memory.
    best = topk_indices(pre.view(-1, GROUP, groups).amax(1), k)
    members = torch.arange(0, latents, groups)[None, :, None]
    candidates = (best[:, None, :] + members).flatten(1)
    return candidates.gather(1, _partition_indices(pre.gather(1, candidates), k))


def _partition_indices(pre: Float[Tensor, "batch latent"], k: int) -> Int[Tensor, "batch k"]:
    smallest_first = np.argpartition(pre.numpy(), pre.shape[1] - k, axis=1)
    return torch.from_numpy(np.ascontiguousarray(smallest_first[:, -k:]))


@torch.no_grad()
def _select(x: Tensor, w_enc: Tensor, bias: Tensor, k: int) -> tuple[Choice, Tensor]:
    latents = w_enc.shape[0]
    rows = max(1, BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS_ACCELERATOR) // latents)
    buffer = x.new_empty(min(rows, len(x)), latents)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), k)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        pre = torch.addmm(bias, block, w_enc.T, out=buffer[: len(block)])
        chosen = topk_indices(pre, k)
        indices[start : start + rows] = chosen
        torch.gather(pre, 1, chosen, out=values[start : start + rows])
    return Choice(indices, latents), values.relu_()


class _ActiveValues(torch.autograd.Function):
    """Gives the values found by the search their gradient: that of `relu(x @ w_enc.T + bias)` at the chosen latents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_enc: Tensor, bias: Tensor, values: Tensor, choice: Choice) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.choice = choice
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        grad = grad_outputs[0] * (values > 0)
        grad_bias = torch.bincount(ctx.choice.indices.flatten(), grad.flatten(), minlength=ctx.choice.latents)
        return None, ctx.choice.sum_by_latent(x, grad), grad_bias.to(x.dtype), None, None


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w_dec: Tensor, choice: Choice) -> Tensor:
        ctx.save_for_backward(values, w_dec)
        ctx.choice = choice
        return F.embedding_bag(choice.indices, w_dec, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, w_dec = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        # embedding_bag's own backward takes each dot product without gathering the decoder rows (5x faster than that).
        with torch.enable_grad():
            again = values.detach().requires_grad_()
            out = F.embedding_bag(ctx.choice.indices, w_dec.detach(), mode="sum", per_sample_weights=again)
        (grad_values,) = torch.autograd.grad(out, again, grad)
        return grad_values, ctx.choice.sum_by_latent(grad, values), None
