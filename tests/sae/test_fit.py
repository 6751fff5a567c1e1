"""Fits that are known: rows made of the SAE's own latents, and what can go wrong with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from activations.errors import UserError
from activations.prompts import Role
from activations.store import ActivationStore, StoreWriter
from sae.fit import check_fit, fit_warning

HOOK = "blocks.0.hook_resid_post"
D_MODEL, ACTIVE, PROMPTS, TOKENS = 16, 2, 100, 20


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator(seed))).Q


def known_rows() -> tuple[Tensor, Tensor]:
    """Rows with two of sixteen orthogonal directions on, around a mean that is not zero; and that mean.

    Their mean norm is sqrt(D_MODEL).
    """
    on = torch.rand(PROMPTS * TOKENS, D_MODEL, generator=generator(1)).topk(ACTIVE, dim=1).indices
    strengths = 1 + torch.rand(PROMPTS * TOKENS, ACTIVE, generator=generator(2))
    codes = torch.zeros(PROMPTS * TOKENS, D_MODEL).scatter_(1, on, strengths)
    mean = torch.randn(D_MODEL, generator=generator(3)) / 3
    rows = codes @ rotation(0) + mean + 0.02 * torch.randn(codes.shape, generator=generator(4))
    unit = D_MODEL**0.5 / rows.norm(dim=1).mean()
    return rows * unit, mean * unit


def known_sae(turn: Tensor | None = None) -> JumpReLUSAE:
    """The SAE of `known_rows`, or of the same in a model whose activations are turned."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_MODEL))
    turn = torch.eye(D_MODEL) if turn is None else turn
    with torch.no_grad():
        sae.W_dec.copy_(rotation(0) @ turn)
        sae.W_enc.copy_((rotation(0) @ turn).T)
        sae.b_dec.copy_(known_rows()[1] @ turn)
        sae.threshold.fill_(0.5)
    sae.cfg.metadata.l0 = ACTIVE
    return sae


def prompts(first: Role = Role.PROMPT) -> np.ndarray:
    """Roles of rows: every prompt is plain text but perhaps for its first token."""
    roles = np.full((PROMPTS, TOKENS), Role.PROMPT)
    roles[:, 0] = first
    return roles.reshape(-1)


def write(folder: Path, rows: Tensor, roles: Sequence[int] | np.ndarray) -> ActivationStore:
    """A store of two shards; a prompt has `TOKENS` positions."""
    number, half = np.arange(len(rows)), TOKENS * (len(rows) // TOKENS // 2)
    index = {"token": number, "prompt": number // TOKENS, "position": number % TOKENS, "role": np.array(roles)}
    with StoreWriter(folder, {HOOK: rows.shape[1]}, "float32", {}) as writer:
        for shard, part in enumerate((slice(0, half), slice(half, len(rows)))):
            columns = {name: column[part] for name, column in index.items()}
            ids = {int(prompt): f"p{prompt}" for prompt in np.unique(columns["prompt"])}
            writer.write(shard, {HOOK: rows[part]}, columns, ids, "0")
        writer.close(2, f"{0:032x}")
    return ActivationStore.load(folder)


def warning_of(sae: JumpReLUSAE, folder: Path, rows: Tensor, roles: np.ndarray | None = None) -> str:
    sentence = fit_warning(check_fit(sae, write(folder, rows, prompts() if roles is None else roles), HOOK))
    assert sentence is not None
    assert sentence.startswith(f"The SAE does not fit {HOOK} of {folder} (")
    return sentence


def test_numbers_against_their_definitions(tmp_path: Path) -> None:
    """Breaks if sums are float32 (the mean is far off), if special rows count, if other rows than the first 1,500 do,
    or if parts of a thousand rows are not put together."""
    rows, roles = known_rows()[0] + 1000, prompts(first=Role.SPECIAL)
    sae = known_sae()
    fit = check_fit(sae, write(tmp_path / "store", rows, roles), HOOK, rows=1500)
    x = rows[roles != Role.SPECIAL][:1500]
    again, exact = sae(x).detach().double(), x.double()
    assert fit.rows == 1500
    assert fit.fvu == pytest.approx(
        ((exact - again).square().sum() / (exact - exact.mean(0)).square().sum()).item(), rel=1e-9
    )
    assert fit.norm_ratio == pytest.approx((again.norm(dim=1).mean() / exact.norm(dim=1).mean()).item(), rel=1e-9)
    assert fit.l0 == pytest.approx((sae.encode(x) > 0).sum(1).double().mean().item())


def test_no_more_is_read_than_needed(tmp_path: Path) -> None:
    """Breaks if shards are read, or computed by a model, after the rows are together."""
    store = write(tmp_path / "store", known_rows()[0], prompts())
    max((tmp_path / "store").glob("*.h5")).unlink()
    assert check_fit(known_sae(), store, HOOK, rows=900).rows == 900


def test_an_sae_that_fits(tmp_path: Path) -> None:
    """Breaks if a sound SAE is complained about."""
    fit = check_fit(known_sae(), write(tmp_path / "store", known_rows()[0], prompts()), HOOK)
    assert fit.fvu < 0.01
    assert fit.l0 == fit.expected_l0 == ACTIVE
    assert fit.norm_ratio == pytest.approx(1, abs=0.01)
    assert fit.rows == PROMPTS * TOKENS
    assert fit_warning(fit) is None
    assert fit.diagnosis == ""


def test_another_model(tmp_path: Path) -> None:
    """Breaks if an SAE of other directions passes, or if something is claimed to repair it."""
    sentence = warning_of(known_sae(rotation(9)), tmp_path / "store", known_rows()[0], prompts(Role.SPECIAL))
    assert "(1900 rows): FVU " in sentence
    assert sentence.endswith(
        "(above 0.5); likely causes: it belongs to another layer or model, it expects activations normalised in some "
        "way, or the prompts were read without the BOS that it was trained with."
    )


def test_activations_of_another_scale(tmp_path: Path) -> None:
    """Breaks if the rows are not tried at the scale of sqrt(d_model) = 4, or if the scale that they have is wrong."""
    sentence = warning_of(known_sae(), tmp_path / "store", 10 * known_rows()[0])
    assert "scaled from a mean norm of 40 to 4 it fits (FVU 0.00" in sentence
    assert "L0 2): the SAE seems to expect activations scaled to a mean norm of sqrt(d_model)." in sentence
    assert "likely causes" not in sentence


def test_activations_of_norm_one(tmp_path: Path) -> None:
    """Breaks if sqrt(d_model) is the only scale that is tried."""
    sae = known_sae()
    with torch.no_grad():
        sae.b_dec.div_(4)
        sae.threshold.div_(4)
    sentence = warning_of(sae, tmp_path / "store", 10 * known_rows()[0])
    assert "from a mean norm of 40 to 1 it fits" in sentence
    assert "scaled to a mean norm of 1." in sentence
    assert "sqrt" not in sentence


def test_dead_encoder(tmp_path: Path) -> None:
    """Breaks if an L0 of zero is only compared with an expected one."""
    sae = known_sae()
    sae.cfg.metadata.l0 = None
    with torch.no_grad():
        sae.threshold.fill_(1e6)
    sentence = warning_of(sae, tmp_path / "store", known_rows()[0])
    assert "no latent is active on any row" in sentence
    assert "likely causes" in sentence


def first_tokens_apart() -> Tensor:
    """`known_rows`, with first tokens forty times as long, in one direction: what a model makes of them."""
    rows = known_rows()[0].clone()
    rows[::TOKENS] = 40 * 4 * torch.nn.functional.normalize(torch.ones(D_MODEL), dim=0)
    return rows


def test_prompts_without_bos(tmp_path: Path) -> None:
    """Breaks if first tokens that are no special rows are not looked at apart."""
    sentence = warning_of(known_sae(), tmp_path / "store", first_tokens_apart())
    assert (
        "without the first tokens of prompts (100 rows, 40 times as long as the others) it fits (FVU 0.00" in sentence
    )
    assert "so BOS is missing or not known as special." in sentence
    assert "likely causes" not in sentence


def test_special_rows_do_not_count(tmp_path: Path) -> None:
    """Breaks if BOS, which no SAE need explain, makes a warning."""
    store = write(tmp_path / "store", first_tokens_apart(), prompts(first=Role.SPECIAL))
    assert fit_warning(check_fit(known_sae(), store, HOOK)) is None


def test_special_rows_hide_a_bad_fit(tmp_path: Path) -> None:
    """Breaks if nobody says why figures over all tokens look good: this SAE explains BOS and nothing else."""
    sae = known_sae()
    sae.cfg.metadata.l0 = None
    bos = first_tokens_apart()[0]
    with torch.no_grad():
        sae.W_enc.copy_(bos[:, None] / bos.norm())
        sae.W_dec.copy_(bos / bos.norm() / D_MODEL)
        sae.b_dec.zero_()
        sae.threshold.fill_(50)
    sentence = warning_of(sae, tmp_path / "store", first_tokens_apart(), prompts(first=Role.SPECIAL))
    assert "no latent is active on any row" in sentence
    assert "likely causes" in sentence
    assert "; figures over all tokens hide this: with the 100 special rows there is FVU 0.0" in sentence


def test_l0_alone(tmp_path: Path) -> None:
    """Breaks if a good FVU excuses an L0 beyond three times the expected one, or if less than that is complained of."""
    sae, store = known_sae(), write(tmp_path / "store", known_rows()[0], prompts())
    for expected, complaint in {0.6: "L0 2 (0.6 expected)", 7: "L0 2 (7 expected)", 0.7: None, 5.9: None}.items():
        sae.cfg.metadata.l0 = expected
        sentence = fit_warning(check_fit(sae, store, HOOK))
        assert (sentence is None) == (complaint is None)
        assert complaint is None or f"rows): {complaint}; " in str(sentence)


def test_reconstructions_of_another_length(tmp_path: Path) -> None:
    """Breaks if the ratio of norms is the wrong way round or not looked at; the other numbers are good."""
    rows = known_rows()[0] - known_rows()[1]
    sae = known_sae()
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_dec.mul_(0.45)
    assert "reconstructions 0.4" in warning_of(sae, tmp_path / "short", rows)
    with torch.no_grad():
        sae.W_dec.mul_(5)
    assert "reconstructions 2.2" in warning_of(sae, tmp_path / "long", rows)


def test_expected_l0(tmp_path: Path) -> None:
    """Breaks if K of a TopK is not taken, or if something is expected of an SAE that does not say."""
    store = write(tmp_path / "store", known_rows()[0], prompts())
    topk = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=32, k=5))
    silent = known_sae()
    silent.cfg.metadata.l0 = None
    assert check_fit(topk, store, HOOK).expected_l0 == 5
    assert check_fit(silent, store, HOOK).expected_l0 is None


def test_damaged_weights(tmp_path: Path) -> None:
    """Breaks if NaN, which compares as false, passes for good."""
    sae = known_sae()
    with torch.no_grad():
        sae.b_dec[0] = float("nan")
    assert "FVU nan" in warning_of(sae, tmp_path / "store", known_rows()[0])


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """Breaks if a store without usable rows, or an SAE of another width or hook, ends in numbers or a traceback."""
    rows = known_rows()[0][: 2 * TOKENS]
    special = write(tmp_path / "special", rows, [Role.SPECIAL] * len(rows))
    with pytest.raises(UserError, match="special has no non-special rows of"):
        check_fit(known_sae(), special, HOOK)
    for name, value in (("constant", 1.0), ("broken", float("nan"))):
        store = write(tmp_path / name, torch.full_like(rows, value), [Role.PROMPT] * len(rows))
        with pytest.raises(UserError, match=f"{name} do not vary or hold NaN"):
            check_fit(known_sae(), store, HOOK)
    with pytest.raises(UserError, match="SAE expects d_model=8"):
        check_fit(TopKSAE(TopKSAEConfig(d_in=8, d_sae=32, k=5)), special, HOOK)
    elsewhere = known_sae()
    elsewhere.cfg.metadata.hook_name = "blocks.5.hook_resid_post"
    with pytest.raises(UserError, match=r"trained on blocks\.5"):
        check_fit(elsewhere, special, HOOK)
