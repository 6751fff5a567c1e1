"""The sparse engine against a dense float64 reference, and its search against torch.topk."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.training.sparse import (
    BLOCK_ELEMENTS,
    ActiveLatents,
    batch_topk_encode,
    sparse_decode,
    topk_encode,
    topk_indices,
)


@pytest.mark.parametrize(("latents", "k"), [(8, 8), (37, 5), (64, 4), (512, 8), (1024, 32), (2048, 8)])
def test_search_equals_torch_topk(latents: int, k: int) -> None:
    pre = torch.randn(65, latents, generator=torch.Generator().manual_seed(0))
    found = topk_indices(pre, k)
    assert torch.equal(pre.gather(1, found).sort(1).values, pre.topk(k).values.sort(1).values)
    assert all(len(set(row)) == k for row in found.tolist())


def test_search_with_ties_gives_k_distinct_latents_of_the_largest_value() -> None:
    pre = torch.zeros(4, 512)
    pre[:, 100:103] = 1.0
    found = topk_indices(pre, 8)
    assert all(len(set(row)) == 8 and {100, 101, 102} <= set(row) for row in found.tolist())


def dense_reference(x: Tensor, w_enc: Tensor, bias: Tensor, w_dec: Tensor, k: int) -> Tensor:
    pre = x @ w_enc.T + bias
    chosen = pre.topk(k, dim=1).indices
    latents = torch.zeros_like(pre).scatter(1, chosen, pre.gather(1, chosen).relu())
    return latents @ w_dec


def batch_reference(x: Tensor, w_enc: Tensor, bias: Tensor, w_dec: Tensor, k: int) -> Tensor:
    pre = (x @ w_enc.T + bias).relu().flatten()
    chosen = pre.topk(k * len(x)).indices
    return torch.zeros_like(pre).scatter(0, chosen, pre[chosen]).view(len(x), -1) @ w_dec


def encode_and_decode(x: Tensor, w_enc: Tensor, bias: Tensor, w_dec: Tensor, k: int, batchwise: bool) -> Tensor:
    encode = batch_topk_encode if batchwise else topk_encode
    return sparse_decode(encode(x, w_enc, bias, k), w_dec)


@pytest.mark.parametrize("batchwise", [False, True])
@pytest.mark.parametrize("negative_bias", [0.0, -4.0])
def test_values_and_gradients_equal_dense_float64(
    negative_bias: float, batchwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a pair is lost or counted twice, a shut latent gets a gradient, or blocks do not join."""
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 64 * 10)  # several blocks of 10 rows, the last one shorter
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(33, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    x[5] *= 6  # under BatchTopK this input has more active latents than the first candidates
    weights = [torch.randn(64, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    # With the strongly negative bias the ReLU shuts some of the chosen latents.
    bias = torch.randn(64, generator=generator, dtype=torch.float64) + 2 * negative_bias
    sparse = [tensor.clone().requires_grad_() for tensor in (weights[0], bias, weights[1])]
    dense = [tensor.clone().requires_grad_() for tensor in (weights[0], bias, weights[1])]

    ours = encode_and_decode(x, *sparse, k=4, batchwise=batchwise)
    reference = (batch_reference if batchwise else dense_reference)(x, *dense, k=4)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)

    (ours - target).square().mean().backward()
    (reference - target).square().mean().backward()
    for one, other in zip(sparse, dense, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-13)


def test_batch_topk_spreads_k_over_the_batch() -> None:
    """Breaks if inputs with many strong latents are cut at the number of first candidates."""
    generator = torch.Generator().manual_seed(0)
    x, w_enc = torch.randn(50, 8, generator=generator), torch.randn(128, 8, generator=generator)
    x[:4] *= 10
    active = batch_topk_encode(x, w_enc, torch.zeros(128), k=3)
    each = torch.bincount(active.choice.inputs, minlength=50)
    assert each.sum() == 150
    assert each[:4].min() > 6
    assert each.min() == 0
    pre = (x @ w_enc.T).relu()
    expected = torch.where(pre >= pre.flatten().topk(150).values.min(), pre, 0)
    torch.testing.assert_close(active.dense(), expected)


@pytest.mark.parametrize("batchwise", [False, True])
def test_nothing_active(batchwise: bool) -> None:
    w = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    out = encode_and_decode(torch.ones(3, 4), w, torch.full((16,), -100.0), w, k=2, batchwise=batchwise)
    assert not out.any()


@pytest.mark.parametrize("encode", [topk_encode, batch_topk_encode])
def test_bfloat16_encode_is_the_float32_result_within_its_rounding(encode: Callable[..., ActiveLatents]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, w_enc = torch.randn(200, 64, generator=generator), torch.randn(256, 64, generator=generator)
    bias = torch.randn(256, generator=generator)
    exact, rounded = (encode(x, w_enc, bias, 8, dtype).dense() for dtype in (None, torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert (exact - rounded).square().sum() < 0.01 * exact.square().sum()
    assert not torch.equal(exact, rounded)


def test_float32_is_the_float64_result_within_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 32, generator=generator)
    w_enc, w_dec = (torch.randn(256, 32, generator=generator) for _ in range(2))
    bias = torch.randn(256, generator=generator)
    ours = sparse_decode(topk_encode(x, w_enc, bias, k=6), w_dec)
    reference = dense_reference(x.double(), w_enc.double(), bias.double(), w_dec.double(), k=6)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-3)
