"""What a steered latent co-activates: the formula written out over whole prompts, and a planted interference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from small_stores import D_MODEL, HOOK, LATENTS, ragged_batch, random_activations, tiny_sae, write_store
from torch import Tensor

from activations.errors import UserError
from activations.prompts import Role
from activations.source import CHUNK_ROWS, ActivationSource
from activations.tokens import TokenBatch
from diffing.positions import POSITION_ROLES, Positions
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.interference import interference

BATCH = ragged_batch(11)
STEERED, STRENGTH, NORM = 5, 0.8, 2.5


def chosen_rows(batch: TokenBatch, activations: Sequence[Tensor], positions: Positions) -> list[Tensor]:
    """Each prompt's rows at the positions, of the prompts that have any."""
    masks = [torch.from_numpy(np.isin(roles, POSITION_ROLES[positions])) for roles in batch.roles]
    return [rows[mask] for rows, mask in zip(activations, masks, strict=True) if mask.any()]


@torch.no_grad()
def written_out(sae: SAE, prompts: Sequence[Tensor], strength: float) -> pd.DataFrame:
    """All of the table from dense encodings, by latent."""
    unit = sae.W_dec[STEERED] / sae.W_dec[STEERED].norm()
    push = (strength * NORM * unit).float()
    change = torch.stack([(sae.encode(x + push) - sae.encode(x)).double().mean(0) for x in prompts]).mean(0)
    on = (sae.encode(torch.cat(list(prompts))) > 0).numpy().astype(float)
    with np.errstate(invalid="ignore"):
        phi = np.corrcoef(on.T)[STEERED]
    return pd.DataFrame(
        {
            "change": change.numpy(),
            "cosine": (sae.W_dec @ unit / sae.W_dec.norm(dim=1)).numpy(),
            "overlap": (unit @ sae.W_enc).numpy(),
            "active_rows": on.sum(0),
            "co_active_rows": on.T @ on[:, STEERED],
            "expected_rows": on.mean(0) * on[:, STEERED].mean() * len(on),
            "phi": phi,
        }
    )


def steered(
    sae: SAE, store: ActivationSource, positions: Positions = "all", strength: float = STRENGTH
) -> pd.DataFrame:
    return interference(
        sae, store, HOOK, NORM, InterferenceConfig(latent=STEERED, strength=strength, positions=positions)
    )


@pytest.mark.parametrize("positions", ["prompt", "answer", "all"])
@pytest.mark.parametrize("strength", [STRENGTH, -STRENGTH])
def test_equals_the_formula_written_out(tmp_path: Path, positions: Positions, strength: float) -> None:
    """Breaks if rows are averaged instead of prompts, special rows count, or the vector has another length or sign."""
    sae, activations = tiny_sae(), random_activations(BATCH, seed=1)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, LATENTS)[:, None])
    table = steered(sae, write_store(tmp_path / "s", BATCH, activations), positions, strength)
    assert (np.diff(table["change"].abs().to_numpy()) <= 0).all()
    expected = written_out(sae, chosen_rows(BATCH, activations, positions), strength)
    found = table.set_index("latent").sort_index()[list(expected)].astype(float)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_chunks_are_summed(tmp_path: Path) -> None:
    """Breaks if rows of one chunk are taken for those of another, or weigh by chunk."""
    batch = ragged_batch(2 * CHUNK_ROWS // 7)
    activations = random_activations(batch, seed=2)
    store = write_store(tmp_path / "s", batch, activations, prompts_a_shard=len(batch))
    assert store.shards == 1
    assert store.rows > CHUNK_ROWS
    expected = written_out(tiny_sae(), chosen_rows(batch, activations, "all"), STRENGTH)
    found = steered(tiny_sae(), store).set_index("latent").sort_index()[list(expected)].astype(float)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def planted() -> tuple[StandardSAE, list[Tensor]]:
    """An SAE that reads single axes, and rows on which they are on by turns.

    Latent 5 is steered. Latent 0 reads its axis too, and is on where it is; latent 1 reads it and the next axis, and is
    on only where 5 is off; latent 2 reads it and is dead below a bias; latent 3 reads another axis; 4 is dead.
    """
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=6, dtype="float64"))
    axes = torch.eye(D_MODEL)
    encoder = torch.stack([axes[0], 0.5 * axes[0] + axes[1], axes[0], axes[2], 0 * axes[0], axes[0]])
    with torch.no_grad():
        sae.W_enc.copy_(encoder.T)
        sae.W_dec.copy_(torch.stack([axes[3], axes[1], axes[4], axes[2], axes[5], 3 * axes[0]]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.0, -1.5, 0.0, -1.0, 0.0]))
        sae.b_dec.zero_()
    on, off = axes[0] - axes[1], axes[1] - axes[0]
    rows = [torch.stack([(on if i % 2 else off) + axes[2] * (i % 3) for i in range(len(t))]) for t in BATCH.tokens]
    return sae, rows


def test_a_planted_interference(tmp_path: Path) -> None:
    """Breaks if latents that go together are called interference, or those that never meet, or are dead, are not."""
    sae, rows = planted()
    table = steered(sae, write_store(tmp_path / "s", BATCH, rows)).set_index("latent").sort_index()
    share_on = np.mean([np.mean(np.flatnonzero(roles != Role.SPECIAL) % 2) for roles in BATCH.roles])
    # The vector added is 2 long: latent 0 goes from 1 to 3 or from 0 to 1, and latent 2 to 1.5 where 0 was on.
    assert table["change"].tolist()[2:5] == pytest.approx([1.5 * share_on, 0.0, 0.0])
    assert table["change"].tolist()[0] == pytest.approx(1 + share_on)
    assert table["moved_never_co_active"].tolist() == [False, True, True, False, False, False]
    assert table.loc[[0, 1, STEERED], "phi"].tolist() == pytest.approx([1.0, -1.0, 1.0])
    assert np.isnan(table.loc[[2, 4], "phi"].to_numpy()).all()
    assert table.loc[[0, 1, 2, 3], "overlap"].tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0])
    assert table.loc[[0, STEERED], "cosine"].tolist() == pytest.approx([0.0, 1.0])
    assert table["expected_rows"].tolist()[1] > 1
    assert table["expected_rows"].tolist()[2] == 0


def test_what_counts_as_moved(tmp_path: Path) -> None:
    """Breaks if the smallest change is not a share of the largest."""
    sae, rows = planted()
    store = write_store(tmp_path / "s", BATCH, rows)
    change = steered(sae, store).set_index("latent").sort_index()["change"].abs().tolist()
    share = change[1] / max(change)
    for moved_from, moved in ((share * 0.999, True), (share * 1.001, False)):
        table = interference(
            sae,
            store,
            HOOK,
            NORM,
            InterferenceConfig(latent=STEERED, strength=STRENGTH, positions="all", moved_from=moved_from),
        ).set_index("latent")
        assert table.loc[1, "moved_never_co_active"] == moved


@pytest.mark.parametrize("bias", [-1.5, -100.0])
def test_a_steered_latent_that_is_never_active(tmp_path: Path, bias: float) -> None:
    """Breaks if its counts of zero are divided by, it is called its own interference, or rounding counts as moved.

    With the first bias steering switches it on, with the second it stays off.
    """
    sae, rows = planted()
    with torch.no_grad():
        sae.b_enc[STEERED] = bias
    table = steered(sae, write_store(tmp_path / "s", BATCH, rows))
    assert np.isnan(table["phi"].to_numpy()).all()
    assert not table["expected_rows"].to_numpy().any()
    assert table.set_index("latent")["moved_never_co_active"].sort_index().tolist() == [True] * 3 + [False] * 3


def test_bad_input(tmp_path: Path) -> None:
    """Breaks if a table is made of nothing, or bad input ends in an error of torch."""
    store = write_store(tmp_path / "s", BATCH, random_activations(BATCH, seed=1))
    sae = tiny_sae()
    with pytest.raises(UserError, match="no latent 24; choose one from 0 to 23"):
        interference(sae, store, HOOK, NORM, InterferenceConfig(latent=LATENTS, strength=STRENGTH, positions="all"))
    for strength, norm in ((0.0, NORM), (STRENGTH, float("inf"))):
        with pytest.raises(UserError, match="adds no finite vector"):
            interference(sae, store, HOOK, norm, InterferenceConfig(latent=STEERED, strength=strength, positions="all"))
    with torch.no_grad():
        sae.W_dec[3] = 0
    with pytest.raises(UserError, match="decoder row of latent 3 is zero"):
        interference(sae, store, HOOK, NORM, InterferenceConfig(latent=3, strength=STRENGTH, positions="all"))
    wide = StandardSAE(StandardSAEConfig(d_in=12, d_sae=6))
    with pytest.raises(UserError, match="SAE expects d_model=12"):
        interference(wide, store, HOOK, NORM, InterferenceConfig(latent=3, strength=STRENGTH, positions="all"))
    roles = tuple(np.full_like(r, Role.SPECIAL) for r in BATCH.roles)
    special = TokenBatch(BATCH.ids, BATCH.tokens, roles)
    with pytest.raises(UserError, match=r"No prompt of .* at the positions 'answer'"):
        steered(tiny_sae(), write_store(tmp_path / "t", special, random_activations(BATCH, seed=1)), "answer")
