"""The sparse engine against a dense float64 reference, and its search against torch.topk."""

import pytest
import torch
from torch import Tensor

from sae.sparse import BLOCK_ELEMENTS, sparse_decode, topk_encode, topk_indices


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


@pytest.mark.parametrize("negative_bias", [0.0, -4.0])
def test_values_and_gradients_equal_dense_float64(negative_bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 64 * 10)  # several blocks of 10 rows, the last one shorter
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(33, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = [torch.randn(64, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    # With the strongly negative bias the ReLU shuts some of the chosen latents.
    bias = torch.randn(64, generator=generator, dtype=torch.float64) + 2 * negative_bias
    sparse = [tensor.clone().requires_grad_() for tensor in (*weights, bias)]
    dense = [tensor.clone().requires_grad_() for tensor in (*weights, bias)]

    active = topk_encode(x, sparse[0], sparse[2], k=4)
    ours = sparse_decode(active, sparse[1])
    reference = dense_reference(x, dense[0], dense[2], dense[1], k=4)
    assert bool((active.values == 0).any()) == (negative_bias < 0)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)

    (ours - target).square().mean().backward()
    (reference - target).square().mean().backward()
    for one, other in zip(sparse, dense, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-13)


def test_float32_is_the_float64_result_within_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 32, generator=generator)
    w_enc, w_dec = (torch.randn(256, 32, generator=generator) for _ in range(2))
    bias = torch.randn(256, generator=generator)
    ours = sparse_decode(topk_encode(x, w_enc, bias, k=6), w_dec)
    reference = dense_reference(x.double(), w_enc.double(), bias.double(), w_dec.double(), k=6)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-3)
