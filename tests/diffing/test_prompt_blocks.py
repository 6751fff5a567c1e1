"""Means within prompts, streamed: against one-shot formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from small_stores import D_MODEL, HOOK, LATENTS, ragged_batch, random_activations, tiny_sae, write_store
from torch import Tensor

from activations.errors import UserError
from activations.prompts import Role
from activations.tokens import TokenBatch
from diffing.positions import POSITION_ROLES, PROMPT_END, Positions
from diffing.ranking import prompt_blocks as module
from diffing.ranking.activation_means import activation_means
from diffing.ranking.prompt_blocks import PromptMeans, prompt_blocks
from sae.encode import encode_active
from sae.training.sparse import BLOCK_ELEMENTS

POSITIONS: tuple[Positions, ...] = ("prompt", "prompt_end", "last_prompt", "answer", "all")


def positions_of(roles: np.ndarray, positions: Positions) -> np.ndarray:
    chosen = np.flatnonzero(np.isin(roles, POSITION_ROLES[positions]))
    if positions == "prompt_end":
        chosen = chosen[chosen > np.flatnonzero(roles == Role.LAST_PROMPT) - PROMPT_END]
    return chosen


def random_sae(kind: str) -> SAE:
    shape = {"d_in": D_MODEL, "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    made: dict[str, SAE] = {
        "topk": TopKSAE(TopKSAEConfig(k=4, **shape)),
        "topk, rescaled": TopKSAE(TopKSAEConfig(k=4, rescale_acts_by_decoder_norm=True, **shape)),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**shape)),
        "jumprelu, no b_dec": JumpReLUSAE(JumpReLUSAEConfig(apply_b_dec_to_input=False, **shape)),
        "normalised": JumpReLUSAE(JumpReLUSAEConfig(normalize_activations="layer_norm", **shape)),
        "standard": StandardSAE(StandardSAEConfig(**shape)),
    }
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made[kind].named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if name == "threshold" else 1))
    return made[kind]


@pytest.mark.parametrize("kind", ["topk", "topk, rescaled", "jumprelu", "jumprelu, no b_dec", "normalised", "standard"])
def test_active_pairs_are_what_sae_lens_encodes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a bias, a threshold below zero, a rescaling or a block's place is forgotten."""
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", LATENTS * 7)
    sae, rows = random_sae(kind), torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    pairs = encode_active(sae, rows)
    with torch.no_grad():
        expected = sae.encode(rows)
    found = torch.zeros_like(expected)
    found[pairs.row, pairs.latent] = pairs.value
    torch.testing.assert_close(found, expected)
    assert len(pairs.value) == int((expected != 0).sum())
    assert (pairs.row.diff() >= 0).all()
    assert len(encode_active(sae, rows[:0]).value) == 0


def collected(
    folder: Path, positions: Positions, sae: SAE, activations: list[Tensor], batch: TokenBatch
) -> list[PromptMeans]:
    store = write_store(folder, batch, activations)
    return [block.means["base"] for block in prompt_blocks(sae, {"base": store}, HOOK, positions)]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("values", [2**22, LATENTS])
def test_streamed_means_equal_the_one_shot_formula(
    tmp_path: Path, positions: Positions, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a row counts for another prompt, or anything depends on how many prompts are taken at once."""
    monkeypatch.setattr(module, "_BLOCK_VALUES", values)  # many prompts at a time, or one
    batch, sae = ragged_batch(10), tiny_sae()
    activations = random_activations(batch, seed=1)
    found = collected(tmp_path / "s", positions, sae, activations, batch)
    assert len(found) == (4 if values > LATENTS else 10)
    chosen = [
        rows[torch.from_numpy(positions_of(roles, positions))]
        for rows, roles in zip(activations, batch.roles, strict=True)
    ]
    with torch.no_grad():
        encoded = [sae.encode(rows) for rows in chosen]
    together = torch.cat(encoded)
    expected = torch.stack([a.double().mean(0) for a in encoded])
    torch.testing.assert_close(torch.cat([m.activity for m in found]), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    vectors = torch.stack([a.double().mean(0) for a in chosen])
    torch.testing.assert_close(torch.cat([m.activation for m in found]), vectors, rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(sum(m.active for m in found), (together > 0).sum(0))  # pyright: ignore
    maximum = torch.stack([m.maximum for m in found]).amax(0)
    torch.testing.assert_close(maximum, together.amax(0), rtol=1e-5, atol=1e-6)
    assert torch.cat([m.rows for m in found]).tolist() == [len(rows) for rows in chosen]


def test_further_positions_are_the_sums_of_the_means(tmp_path: Path) -> None:
    """Breaks if a prompt weighs by its tokens, or positions that some prompts lack are counted for all."""
    batch, sae = ragged_batch(10), tiny_sae()
    store = write_store(tmp_path / "s", batch, random_activations(batch, seed=1))
    blocks = list(prompt_blocks(sae, {"base": store}, HOOK, "last_prompt", POSITIONS))
    for positions in POSITIONS:
        alone = [block.means["base"] for block in prompt_blocks(sae, {"base": store}, HOOK, positions)]
        activity = torch.cat([means.activity for means in alone])
        total = torch.stack([block.sums[positions]["base"].activity for block in blocks]).sum(0)
        torch.testing.assert_close(total, activity.nansum(0), rtol=1e-12, atol=1e-12)
        assert sum(block.sums[positions]["base"].prompts for block in blocks) == int((~activity.isnan()).any(1).sum())


def test_special_positions_never_enter(tmp_path: Path) -> None:
    batch, sae = ragged_batch(6), tiny_sae()
    clean = random_activations(batch, seed=2)
    spoilt = [rows.clone() for rows in clean]
    for rows, roles in zip(spoilt, batch.roles, strict=True):
        rows[torch.from_numpy(roles == Role.SPECIAL)] = 1e6
    for one, other in zip(
        collected(tmp_path / "a", "all", sae, clean, batch),
        collected(tmp_path / "b", "all", sae, spoilt, batch),
        strict=True,
    ):
        for name in ("activity", "activation", "active", "maximum"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_sums_do_not_lose_small_values_as_float32_sums_do(tmp_path: Path) -> None:
    batch = ragged_batch(1)
    rows = [torch.full((len(batch.tokens[0]), D_MODEL), 0.1)]
    rows[0][1] = 2.0**24
    used = int((batch.roles[0] != Role.SPECIAL).sum())
    expected = pytest.approx((2.0**24 + (used - 1) * float(np.float32(0.1))) / used, rel=1e-15)
    assert activation_means(write_store(tmp_path / "s", batch, rows), HOOK, "all")[0, 0] == expected
    assert collected(tmp_path / "t", "all", tiny_sae(), rows, batch)[0].activation[0, 0].item() == expected


def test_another_order_of_prompts_is_refused(tmp_path: Path) -> None:
    """Breaks if prompts are paired by place although the stores' shards differ."""
    batch = ragged_batch(6)
    rows = random_activations(batch, seed=0)
    three, two = (write_store(tmp_path / str(n), batch, rows, prompts_a_shard=n) for n in (3, 2))
    with pytest.raises(UserError, match="in another order or other shards than the base's"):
        list(prompt_blocks(tiny_sae(), {"base": three, "corrupted": two}, HOOK, "all"))


def test_an_sae_of_another_width_is_refused(tmp_path: Path) -> None:
    batch = ragged_batch(2)
    store = write_store(tmp_path / "s", batch, random_activations(batch, seed=0))
    sae = TopKSAE(TopKSAEConfig(d_in=12, d_sae=16, k=2, dtype="float32", device="cpu"))
    with pytest.raises(UserError, match=r"SAE expects d_model=12, activations of .* have 8"):
        list(prompt_blocks(sae, {"base": store}, HOOK, "all"))
