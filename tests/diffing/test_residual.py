"""The latents' residual against the formula written out, and at its ends."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from small_stores import D_MODEL, HOOK, LATENTS, ragged_batch, random_activations, tiny_sae, write_store

from activations.errors import UserError
from activations.prompts import Role
from activations.store import ActivationStore
from activations.tokens import TokenBatch
from diffing.ranking.activation_means import latent_means
from diffing.ranking.residual import unexplained_difference

Pair = tuple[ActivationStore, ActivationStore]
BATCH = ragged_batch(7)


def stores(folder: Path, shift: torch.Tensor) -> Pair:
    """Base activations, and the same with `shift` [d_model] added to every row."""
    activations = random_activations(BATCH, seed=0)
    base = write_store(folder / "base", BATCH, activations)
    return base, write_store(folder / "corrupted", BATCH, [rows + shift for rows in activations])


def without_last(batch: TokenBatch) -> TokenBatch:
    """The prompts as plain text: no token is the last before an answer."""
    return replace(batch, roles=tuple(np.where(r == Role.LAST_PROMPT, Role.PROMPT, r) for r in batch.roles))


def test_equals_the_formula_over_prompt_means(tmp_path: Path) -> None:
    """Breaks if rows are averaged instead of prompts, if other positions count, or if the share is not of squares."""
    sae, shift = tiny_sae(), torch.linspace(-1, 2, D_MODEL)
    base, corrupted = stores(tmp_path, shift)
    means = torch.zeros(2, D_MODEL, dtype=torch.float64)
    for rows, roles in zip(random_activations(BATCH, seed=0), BATCH.roles, strict=True):
        chosen = torch.from_numpy(np.isin(roles, (Role.PROMPT, Role.LAST_PROMPT)))
        kept, moved = rows[chosen].double(), (rows + shift)[chosen].double()
        means[0] += (moved - kept).mean(0) / len(BATCH)
        means[1] += (sae(moved) - sae(kept)).detach().mean(0) / len(BATCH)
    expected = (means[0] - means[1]).square().sum() / means[0].square().sum()
    assert unexplained_difference(sae, base, corrupted, HOOK, "prompt") == pytest.approx(expected.item(), rel=1e-9)


def scaled_copy(scale: float) -> StandardSAE:
    """Returns `scale` times its input: every axis and its opposite has a latent."""
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=2 * D_MODEL, dtype="float64"))
    axes = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    with torch.no_grad():
        sae.W_enc.copy_(axes.T)
        sae.W_dec.copy_(scale * axes)
    return sae


@pytest.mark.parametrize(("scale", "share"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.25), (-1.0, 4.0)])
def test_from_everything_explained_to_the_wrong_way(tmp_path: Path, scale: float, share: float) -> None:
    """Breaks if explained and unexplained are exchanged, or the share is clipped or not of squares."""
    base, corrupted = stores(tmp_path, torch.full((D_MODEL,), 0.5))
    assert unexplained_difference(scaled_copy(scale), base, corrupted, HOOK, "all") == pytest.approx(share, abs=1e-12)


def test_models_that_do_not_differ(tmp_path: Path) -> None:
    """Breaks if equal models end in a division by zero."""
    base, corrupted = stores(tmp_path, torch.zeros(D_MODEL))
    assert math.isnan(unexplained_difference(tiny_sae(), base, corrupted, HOOK, "prompt"))


def test_other_tokens_or_no_positions(tmp_path: Path) -> None:
    """Breaks if activations on different prompts are subtracted, or a mean of nothing is returned."""
    base, _ = stores(tmp_path, torch.zeros(D_MODEL))
    other = ragged_batch(7, seed=1)
    unpaired = write_store(tmp_path / "other", other, random_activations(other, seed=1))
    with pytest.raises(UserError, match="hold other tokens"):
        unexplained_difference(tiny_sae(), base, unpaired, HOOK, "prompt")
    words = write_store(tmp_path / "words", plain := without_last(BATCH), random_activations(plain, seed=0))
    with pytest.raises(UserError, match="at the positions 'last_prompt'"):
        unexplained_difference(tiny_sae(), words, words, HOOK, "last_prompt")


def test_latent_means_are_those_of_each_prompts_tokens(tmp_path: Path) -> None:
    """Breaks if the mean is encoded instead of the tokens, or other prompts' or positions' tokens are in it."""
    sae, activations = tiny_sae(), random_activations(BATCH, seed=0)
    store = write_store(tmp_path / "base", BATCH, activations)
    found = latent_means(sae, store, HOOK, "answer")
    for prompt, (rows, roles) in enumerate(zip(activations, BATCH.roles, strict=True)):
        chosen = rows[torch.from_numpy(roles == Role.ANSWER)].double()
        if len(chosen):
            np.testing.assert_allclose(found[prompt], sae.encode(chosen).detach().double().mean(0).numpy(), rtol=1e-6)
        else:
            assert np.isnan(found[prompt]).all()
    assert 0 < np.isnan(found).any(1).sum() < len(BATCH)
    other = tiny_sae()
    other.cfg.d_in = D_MODEL + 1
    other.W_dec.data = torch.zeros(LATENTS, D_MODEL + 1, dtype=torch.float64)
    with pytest.raises(UserError, match="d_model"):
        latent_means(other, store, HOOK, "answer")
