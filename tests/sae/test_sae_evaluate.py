"""Metrics against cases worked out by hand, and against their formulas over everything at once."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import Role
from activations.store import ActivationStore, StoreWriter
from activations.tokens import TokenBatch
from sae.evaluate import decoder_cosines, evaluate_sae, reconstruction_metrics
from sae.splice import cross_entropy_metrics

HOOK = "blocks.0.hook_resid_post"


def first_axis_sae() -> SAE:
    """Two dimensions, three latents: +x, -x, and one that never fires; y is reconstructed as 0."""
    sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=3))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        cast(Tensor, sae.b_enc).copy_(torch.tensor([0.0, 0.0, -1.0]))
    return sae


def make_store(folder: Path, rows: list[list[float]], roles: list[Role]) -> ActivationStore:
    count = np.arange(len(rows))
    index = {"token": count, "prompt": 0 * count, "position": count, "role": np.array(roles)}
    with StoreWriter(folder, {HOOK: len(rows[0])}, "float32", {}) as writer:
        writer.write(0, {HOOK: torch.tensor(rows)}, index, {0: "a"}, "0")
        writer.close(1, f"{0:032x}")
    return ActivationStore.load(folder)


def test_reconstruction_by_hand(tmp_path: Path) -> None:
    """Breaks if a special row counts, or a formula is another than the documented one."""
    # Rows (3, 4), (-1, 0), (1, 2), (5, 0): reconstructed with y = 0. Latent +x is active on three rows, -x on one.
    # Squared errors 16, 0, 4, 0: 20. Mean (2, 1.5); squared distances 1 + 6.25, 9 + 2.25, 1 + 0.25, 9 + 2.25: 31.
    # Cosines, which are the ratios of the lengths too: 3/5, 1, 1/sqrt(5), 1.
    rows = [[3.0, 4.0], [100.0, -7.0], [-1.0, 0.0], [1.0, 2.0], [5.0, 0.0]]
    roles = [Role.PROMPT, Role.SPECIAL, Role.PROMPT, Role.LAST_PROMPT, Role.ANSWER]
    metrics = reconstruction_metrics(first_axis_sae(), make_store(tmp_path / "store", rows, roles), HOOK)
    assert metrics.rows == 4
    assert metrics.fvu == pytest.approx(20 / 31)
    assert metrics.explained_variance == pytest.approx(11 / 31)
    assert metrics.l0 == 1
    assert metrics.l1 == pytest.approx((3 + 1 + 1 + 5) / 4)
    assert metrics.cosine == metrics.l2_ratio == pytest.approx((0.6 + 1 + 1 / math.sqrt(5) + 1) / 4)
    assert metrics.dead_fraction == pytest.approx(1 / 3)
    assert metrics.dense_fraction == pytest.approx(2 / 3)
    assert metrics.density == [0] * 10 + [1, 1], "of frequencies 1/4 and 3/4; the dead latent has none"


def test_many_parts_equal_one_formula(tmp_path: Path) -> None:
    """Breaks if parts are weighted wrongly, or the merged variation of rows far from zero cancels."""
    x = 1000 + torch.randn(2500, 2, generator=torch.Generator().manual_seed(0))
    sae = first_axis_sae()
    metrics = reconstruction_metrics(sae, make_store(tmp_path / "store", x.tolist(), [Role.PROMPT] * 2500), HOOK)
    exact = x.double()
    error = (exact - sae(x).detach().double()).square().sum()
    assert metrics.fvu == pytest.approx((error / (exact - exact.mean(0)).square().sum()).item(), rel=1e-9)


def wide_sae(d_model: int, latents: int, bias: float = 0.0) -> SAE:
    """Random directions; latents fire from nearly always to never, the more rarely the higher their number."""
    generator = torch.Generator().manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=d_model, d_sae=latents))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_model, latents, generator=generator))
        sae.W_dec.copy_(0.01 * torch.randn(latents, d_model, generator=generator))
        cast(Tensor, sae.b_enc).copy_(torch.linspace(2.0, -4.5 * d_model**0.5, latents) + bias)
    return sae


def test_every_number_equals_its_formula_at_once(tmp_path: Path) -> None:
    """Breaks if a sum over parts, a threshold or a bin is another than in the formula over all rows together."""
    # No share of 3,001 rows lies on the edge of a bin.
    x = torch.randn(3001, 8, generator=torch.Generator().manual_seed(1))
    sae = wide_sae(8, 200)
    metrics = reconstruction_metrics(sae, make_store(tmp_path / "store", x.tolist(), [Role.PROMPT] * 3001), HOOK)
    z = sae.encode(x).detach().double()
    exact, again = x.double(), sae(x).detach().double()
    frequency = (z > 0).double().mean(0)
    expected = {
        "fvu": (exact - again).square().sum() / (exact - exact.mean(0)).square().sum(),
        "l0": (z > 0).double().sum(1).mean(),
        "l1": z.sum(1).mean(),
        "cosine": (F.normalize(exact) * F.normalize(again)).sum(1).mean(),
        "l2_ratio": (again.norm(dim=1) / exact.norm(dim=1)).mean(),
        "dead_fraction": (frequency == 0).double().mean(),
        "dense_fraction": (frequency > 0.1).double().mean(),
    }
    for name, value in expected.items():
        assert getattr(metrics, name) == pytest.approx(value.item(), rel=1e-6), name
    edges = 10 ** torch.arange(-6, 0.5, 0.5, dtype=torch.float64)
    between = [(low <= frequency) & (frequency < high) for low, high in pairwise(edges)]
    assert metrics.density == [int(latents.sum()) for latents in between]
    assert min(metrics.dead_fraction, metrics.dense_fraction) > 0.05
    assert np.count_nonzero(metrics.density) >= 5


def test_a_row_of_zeros_has_neither_length_nor_direction(tmp_path: Path) -> None:
    """Breaks if one row of zeros turns a mean into NaN."""
    store = make_store(tmp_path / "store", [[0.0, 0.0], [2.0, 0.0]], [Role.PROMPT] * 2)
    metrics = reconstruction_metrics(first_axis_sae(), store, HOOK)
    assert (metrics.cosine, metrics.l2_ratio) == (0.5, 0.5)


def test_signed_latents_are_active_too(tmp_path: Path) -> None:
    """Breaks if negative latents, which some architectures have, are not counted."""
    store = make_store(tmp_path / "store", [[-1.0, 0.0], [3.0, 0.0]], [Role.PROMPT] * 2)
    sae = first_axis_sae()
    sae.activation_fn = torch.nn.Identity()
    metrics = reconstruction_metrics(sae, store, HOOK)
    # Latents (-1, 1, -1) and (3, -3, -1).
    assert (metrics.l0, metrics.l1, metrics.dead_fraction) == (3.0, 5.0, 0.0)


def test_largest_decoder_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a latent is compared with itself, lengths count, or blocks do not meet every other latent."""
    monkeypatch.setattr("sae.evaluate.ENCODED_ROWS", 16)
    sae = wide_sae(8, 100)
    with torch.no_grad():
        sae.W_dec[70] = 3 * sae.W_dec[3]
    rows = F.normalize(sae.W_dec.detach().double())
    cosines = (rows @ rows.T).fill_diagonal_(-1).amax(1)
    found = decoder_cosines(sae)
    assert found.mean == pytest.approx(cosines.mean().item(), rel=1e-6)
    assert found.max == pytest.approx(1.0)
    assert found.histogram == np.histogram(cosines.clamp(0, 1 - 1e-7), 10, (0, 1))[0].tolist()
    assert sum(found.histogram) == 100


def test_store_of_special_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [[1.0, 2.0], [0.0, 1.0]], [Role.SPECIAL] * 2)
    with pytest.raises(UserError, match="no non-special rows"):
        reconstruction_metrics(first_axis_sae(), store, HOOK)


class ToyModel:
    """Token t has activation (t, t); the logits of the next token (0, 1 or 2) are (0, x, y)."""

    device = torch.device("cpu")
    role = "base"

    def __init__(self) -> None:
        self.active: dict[str, Callable[[Tensor], Tensor | None]] = {}

    @contextmanager
    def hooks(self, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
        self.active = dict(functions)
        yield
        self.active = {}

    def require_hook(self, name: str) -> None:
        assert name == HOOK

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Any:
        assert attention_mask.shape == tokens.shape
        activation = tokens[..., None].float().expand(*tokens.shape, 2)
        if HOOK in self.active:
            activation = self.active[HOOK](activation)
            assert activation is not None
        logits = torch.cat([torch.zeros(*tokens.shape, 1), activation], dim=-1)
        return SimpleNamespace(logits=logits)


def toy_batch() -> TokenBatch:
    tokens = ([2, 1, 2], [1, 2])
    roles = ([Role.SPECIAL, Role.PROMPT, Role.ANSWER], [Role.PROMPT, Role.SPECIAL])
    return TokenBatch(
        ids=("a", "b"),
        tokens=tuple(np.array(row, dtype=np.int32) for row in tokens),
        roles=tuple(np.array(row, dtype=np.uint8) for row in roles),
    )


def kl(clean: list[float], other: list[float]) -> float:
    """KL of the distributions with these logits."""
    p, q = (torch.tensor(logits, dtype=torch.float64).softmax(0) for logits in (clean, other))
    return (p * (p / q).log()).sum().item()


def test_cross_entropy_and_kl_by_hand() -> None:
    """Breaks if predictions made at special positions count, or those of special tokens do not."""
    # Non-special are token 1 of prompt a, before a 2; token 2, its last; and token 1 of prompt b, before a special 2.
    # Logits after token t: (0, t, t); spliced (0, t, 0), zeroed (0, 0, 0), with the mean (0, 3, 1).
    clean, spliced = math.log(1 + 2 * math.e) - 1, math.log(2 + math.e)
    zero, mean = math.log(3), math.log(1 + math.e**3 + math.e) - 1
    found = cross_entropy_metrics(
        first_axis_sae(), cast(Checkpoint, ToyModel()), toy_batch(), HOOK, torch.tensor([3.0, 1.0]), progress=False
    )
    assert (found.targets, found.positions) == (2, 3)
    assert found.ce_clean == pytest.approx(clean)
    assert found.ce_spliced == pytest.approx(spliced)
    assert found.ce_zero == pytest.approx(zero)
    assert found.ce_mean == pytest.approx(mean)
    assert found.ce_recovered == pytest.approx((zero - spliced) / (zero - clean))
    assert found.ce_recovered_mean == pytest.approx((mean - spliced) / (mean - clean))
    after_1, after_2 = [0.0, 1.0, 1.0], [0.0, 2.0, 2.0]
    kl_spliced = (2 * kl(after_1, [0.0, 1.0, 0.0]) + kl(after_2, [0.0, 2.0, 0.0])) / 3
    kl_zero = (2 * kl(after_1, [0.0, 0.0, 0.0]) + kl(after_2, [0.0, 0.0, 0.0])) / 3
    kl_mean = (2 * kl(after_1, [0.0, 3.0, 1.0]) + kl(after_2, [0.0, 3.0, 1.0])) / 3
    assert found.kl_spliced == pytest.approx(kl_spliced)
    assert found.kl_zero == pytest.approx(kl_zero)
    assert found.kl_mean == pytest.approx(kl_mean)
    assert found.kl_recovered == pytest.approx(1 - kl_spliced / kl_zero)
    assert found.kl_recovered_mean == pytest.approx(1 - kl_spliced / kl_mean)


def test_batches_equal_prompts_one_by_one(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if padding is predicted or replaced, rows are mixed up, or special positions are spliced."""
    monkeypatch.setattr("sae.splice._BATCH_TOKENS", 64)
    monkeypatch.setattr("sae.splice._BLOCK_VALUES", 100)
    monkeypatch.setattr("sae.splice.ENCODED_ROWS", 7)
    batch, sae, mean = ragged_batch(), wide_sae(32, 64, bias=8.0), torch.linspace(-1, 1, 32)
    found = cross_entropy_metrics(sae, base, batch, HOOK, mean, progress=False)
    replaced = {
        "clean": lambda rows, special: rows,
        "spliced": lambda rows, special: torch.where(special, rows, sae(rows)),
        "zero": lambda rows, special: 0 * rows,
        "mean": lambda rows, special: torch.where(special, rows, mean),
    }
    ce, divergence = ({name: [] for name in replaced} for _ in range(2))
    for tokens, roles in zip(batch.tokens, batch.roles, strict=True):
        ids, special = torch.from_numpy(tokens).long()[None], torch.from_numpy(roles == Role.SPECIAL)
        log_p = log_probabilities(base, ids, lambda rows: rows)
        for name, function in replaced.items():
            log_q = log_probabilities(base, ids, lambda rows, f=function, s=special[:, None]: f(rows, s))
            losses = -log_q[:-1].gather(1, ids[0, 1:, None])[:, 0]
            ce[name] += losses[~special[:-1]].tolist()
            divergence[name] += (log_p.exp() * (log_p - log_q)).sum(1)[~special].tolist()
    for name in replaced:
        assert getattr(found, f"ce_{name}") == pytest.approx(np.mean(ce[name]), rel=1e-5)
    for name in ("spliced", "zero", "mean"):
        assert getattr(found, f"kl_{name}") == pytest.approx(np.mean(divergence[name]), rel=1e-4)
    assert (found.targets, found.positions) == (len(ce["clean"]), len(divergence["clean"]))


@torch.no_grad()
def log_probabilities(model: Checkpoint, ids: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the next token at every position of one prompt [pos, word], with `function` at the hook; float64."""
    with model.hooks({HOOK: function}):
        logits = cast(Tensor, model.forward(ids, torch.ones_like(ids)).logits)
    return logits[0].double().log_softmax(-1)


def ragged_batch() -> TokenBatch:
    """Twelve prompts of 2 to 12 tokens: special at the start, some in the middle."""
    draw = np.random.default_rng(0)
    tokens = tuple(draw.integers(4, 19, length).astype(np.int32) for length in draw.integers(2, 13, 12))
    roles = tuple(np.where(draw.random(len(row)) < 0.2, Role.SPECIAL, Role.PROMPT).astype(np.uint8) for row in tokens)
    for row in roles:
        row[0] = Role.SPECIAL
    return TokenBatch(tuple(f"p{i}" for i in range(12)), tokens, roles)


def test_no_targets() -> None:
    """Breaks if a mean over nothing is returned."""
    batch = TokenBatch(("a",), (np.array([2, 1], dtype=np.int32),), (np.array([0, 1], dtype=np.uint8),))
    with pytest.raises(UserError, match="None of the 1 prompts"):
        cross_entropy_metrics(first_axis_sae(), cast(Checkpoint, ToyModel()), batch, HOOK, torch.zeros(2), False)


def test_both_together(tmp_path: Path) -> None:
    """Breaks if mean ablation puts another vector in place than the mean of the non-special rows."""
    rows, roles = [[3.0, 4.0], [-1.0, 0.0], [50.0, 50.0]], [Role.PROMPT, Role.PROMPT, Role.SPECIAL]
    store, model = make_store(tmp_path / "store", rows, roles), cast(Checkpoint, ToyModel())
    metrics = evaluate_sae(first_axis_sae(), model, store, toy_batch(), HOOK, progress=False)
    mean = torch.tensor([1.0, 2.0])
    spliced = cross_entropy_metrics(first_axis_sae(), model, toy_batch(), HOOK, mean, progress=False)
    reconstruction = reconstruction_metrics(first_axis_sae(), store, HOOK)
    assert metrics.to_dict() == asdict(spliced) | asdict(reconstruction)
    table = metrics.to_pandas()
    numbers = {name: value for name, value in metrics.to_dict().items() if name != "density"}
    assert dict(zip(table["metric"], table["value"], strict=True)) == numbers
    assert f"<td>fvu</td><td>{metrics.fvu:.4g}</td>" in metrics._repr_html_()
