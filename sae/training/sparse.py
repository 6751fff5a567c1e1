"""The sparse engine of TopK and BatchTopK SAEs: one encode product, exact search, backward through active latents only.

Every sum over active latents is an `embedding_bag`: decoding sums the decoder rows of one input's latents; a weight
gradient sums, for one latent, the inputs (or output gradients) at which it was active. Nothing of size
[batch latent] is kept for backward, and no dense product runs there.

Active latents are kept as pairs of an input and a latent, those of one input together, since under BatchTopK each
input has its own number of them. Weights are [latent d_model] for encoder and decoder alike (sae-lens keeps `W_enc`
transposed).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.training.ranks import ALONE, Ranks

# Pre-activations are made and searched in blocks of rows. On a CPU 512 rows are enough for a product at full speed
# (blocks that fit the cache took 1.7 times as long at 8,192 latents and 2.7 times at 65,536).
BLOCK_ROWS = {"cpu": 512}
BLOCK_ELEMENTS = {"cpu": 1 << 25}
BLOCK_ELEMENTS_ACCELERATOR = 1 << 29
# The search for the largest k first compares the maxima of groups of this many latents (fastest of 2, 4, 8, 16).
GROUP = 4
# BatchTopK looks at this many times k latents of each input before it looks at all latents of an input with more.
CANDIDATES = 2


@dataclass(frozen=True)
class Choice:
    """Which latents are active on which inputs, and (once asked for) the same pairs grouped by latent.

    Attributes:
        indices: Latent of each pair; the pairs of an input stand together, inputs in order.
        starts: Where each input's pairs begin.
        latents: Number of latents of the SAE.
        each: Pairs of each input, where all have as many.
    """

    indices: Int[Tensor, "pair"]
    starts: Int[Tensor, "batch"]
    latents: int
    each: int | None = None

    @cached_property
    def inputs(self) -> Int[Tensor, "pair"]:
        """Input of each pair."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.indices)])])
        batch = torch.arange(len(self.starts), device=self.indices.device)
        return batch.repeat_interleave(ends - self.starts, output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Int[Tensor, "latent"]]:
        """Pairs sorted by latent: their order, their inputs, and where each latent's pairs begin."""
        # Stable, so that the order of summation, and so the last bit of a gradient, never varies.
        order = self.indices.to(torch.int32).sort(stable=True).indices
        counts = torch.bincount(self.indices, minlength=self.latents)
        return order, self.inputs[order], counts.cumsum(0) - counts

    def sum_by_latent(
        self, rows: Float[Tensor, "batch d_model"], weights: Float[Tensor, "pair"]
    ) -> Float[Tensor, "latent d_model"]:
        """For each latent, the sum of the rows at which it was chosen, weighted; zero for latents never chosen."""
        order, inputs, starts = self.by_latent
        return F.embedding_bag(inputs, rows, starts, mode="sum", per_sample_weights=weights[order])


@dataclass(frozen=True)
class ActiveLatents:
    """The active latents of each input: `values` after the ReLU, one for each pair of `choice`."""

    values: Float[Tensor, "pair"]
    choice: Choice

    @property
    def batch(self) -> int:
        """Number of inputs."""
        return len(self.choice.starts)

    def fired(self) -> Bool[Tensor, "latent"]:
        """Latents that are active on any input."""
        fired = torch.zeros(self.choice.latents, dtype=torch.bool, device=self.values.device)
        fired[self.choice.indices[self.values > 0]] = True
        return fired

    def dense(self) -> Float[Tensor, "batch latent"]:
        """The same as a matrix that is mostly zero."""
        out = self.values.new_zeros(self.batch, self.choice.latents)
        out[self.choice.inputs, self.choice.indices] = self.values
        return out


def topk_encode(
    x: Float[Tensor, "batch d_model"],
    w_enc: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, "latent"],
    k: int,
    encode_dtype: torch.dtype | None = None,
) -> ActiveLatents:
    """The k largest of `x @ w_enc.T + bias` for each input, after a ReLU; differentiable in `w_enc` and `bias`.

    `x` is data: no gradient reaches it (a pre-encoder bias belongs in `bias`). With `encode_dtype` the product is
    taken in that number format and its results are used as float32.
    """
    indices, values = largest(x, w_enc, bias, k, encode_dtype)
    starts = torch.arange(0, indices.numel(), k, device=x.device)
    return _active(x, w_enc, bias, values.relu_().flatten(), Choice(indices.flatten(), starts, len(w_enc), k))


def batch_topk_encode(
    x: Float[Tensor, "batch d_model"],
    w_enc: Float[Tensor, "latent d_model"],
    bias: Float[Tensor, "latent"],
    k: int,
    encode_dtype: torch.dtype | None = None,
    ranks: Ranks = ALONE,
) -> ActiveLatents:
    """The k * batch largest positive values of the whole batch (Bussmann et al. 2024, arXiv 2412.06410); exact.

    The largest 2 k of each input give a first threshold. Only an input all of whose candidates reach it can hold
    others that do, so only those few are searched whole. Equal values at the threshold are all taken.

    Args:
        ranks: Processes that hold the other parts of the batch; the threshold is that of all parts together.
    """
    choice, values = _search_batch(x, w_enc, bias, k, encode_dtype, ranks)
    return _active(x, w_enc, bias, values, choice)


@torch.no_grad()
def _search_batch(
    x: Tensor, w_enc: Tensor, bias: Tensor, k: int, encode_dtype: torch.dtype | None, ranks: Ranks
) -> tuple[Choice, Float[Tensor, "pair"]]:
    wanted = k * ranks.total(len(x))
    indices, values = largest(x, w_enc, bias, min(CANDIDATES * k, len(w_enc)), encode_dtype)
    threshold = _nth_largest(ranks.gather(values.flatten()), wanted)
    saturated = (values.min(1).values >= threshold).nonzero().squeeze(1)
    inputs = torch.arange(len(x), device=x.device)[:, None].expand_as(indices)
    outside = torch.ones(len(x), dtype=torch.bool, device=x.device)
    outside[saturated] = False
    reaches = (values >= threshold) & outside[:, None]
    found = [(inputs[reaches], indices[reaches], values[reaches])]
    for rows, pre in preactivations(x[saturated], w_enc, bias, encode_dtype):
        row, latent = (pre >= threshold).nonzero(as_tuple=True)
        found.append((saturated[rows][row], latent, pre[row, latent]))
    inputs, indices, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = values >= _nth_largest(ranks.gather(values), wanted)
    order = inputs[kept].sort(stable=True)
    counts = torch.bincount(order.values, minlength=len(x))
    choice = Choice(indices[kept][order.indices], counts.cumsum(0) - counts, len(w_enc))
    return choice, values[kept][order.indices]


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


def _nth_largest(values: Float[Tensor, "values"], n: int) -> Tensor:
    """The n-th largest of the positive values; the smallest positive one where there are fewer."""
    positive = values[values > 0]
    if len(positive) == 0:
        return values.new_tensor(torch.inf)
    if len(positive) <= n:
        return positive.min()
    if values.device.type == "cpu":
        return torch.from_numpy(np.partition(positive.numpy(), len(positive) - n))[len(positive) - n]
    return positive.topk(n, sorted=False).values.min()


@torch.no_grad()
def largest(
    x: Tensor, w_enc: Tensor, bias: Tensor, k: int, encode_dtype: torch.dtype | None
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Indices and values of the k largest pre-activations of each input."""
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), k)
    for rows, pre in preactivations(x, w_enc, bias, encode_dtype):
        chosen = topk_indices(pre, k)
        indices[rows] = chosen
        torch.gather(pre, 1, chosen, out=values[rows])
    return indices, values


def preactivations(
    x: Tensor, w_enc: Tensor, bias: Tensor, encode_dtype: torch.dtype | None
) -> Iterator[tuple[slice, Float[Tensor, "rows latent"]]]:
    """`x @ w_enc.T + bias` of some rows after others; each block is overwritten by the next."""
    elements = BLOCK_ELEMENTS.get(x.device.type, BLOCK_ELEMENTS_ACCELERATOR)
    size = max(1, min(elements // len(w_enc), BLOCK_ROWS.get(x.device.type, len(x)), len(x)))
    buffer = x.new_empty(size, len(w_enc))
    if encode_dtype is not None and encode_dtype != x.dtype:
        x, w_enc = x.to(encode_dtype), w_enc.to(encode_dtype)
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        pre = buffer[: rows.stop - rows.start]
        if x.dtype == buffer.dtype:
            torch.addmm(bias, x[rows], w_enc.T, out=pre)
        else:
            torch.add(x[rows] @ w_enc.T, bias, out=pre)
        yield rows, pre


def _active(x: Tensor, w_enc: Tensor, bias: Tensor, values: Tensor, choice: Choice) -> ActiveLatents:
    return ActiveLatents(_ActiveValues.apply(x, w_enc, bias, values, choice), choice)  # pyright: ignore[reportArgumentType]


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
        grad_bias = torch.bincount(ctx.choice.indices, grad, minlength=ctx.choice.latents)
        return None, ctx.choice.sum_by_latent(x, grad), grad_bias.to(x.dtype), None, None


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w_dec: Tensor, choice: Choice) -> Tensor:
        ctx.save_for_backward(values, w_dec)
        ctx.choice = choice
        return F.embedding_bag(choice.indices, w_dec, choice.starts, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, w_dec = ctx.saved_tensors
        grad, choice = grad_outputs[0].contiguous(), ctx.choice
        # embedding_bag's own backward takes each dot product without gathering the decoder rows (5x faster than that).
        with torch.enable_grad():
            again = values.detach().requires_grad_()
            out = F.embedding_bag(choice.indices, w_dec.detach(), choice.starts, mode="sum", per_sample_weights=again)
        (grad_values,) = torch.autograd.grad(out, again, grad)
        return grad_values, choice.sum_by_latent(grad, values), None
