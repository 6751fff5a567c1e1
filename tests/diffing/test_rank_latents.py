"""The ranking: symmetries, the planted latent, the control, and the artefact."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_stores import D_MODEL, HOOK, LATENTS, ragged_batch, random_activations, tiny_sae, write_store
from tiny_models import random_sae

import diffing
from activations.artefact import read_json
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig, StoreDtype
from activations.errors import UserError
from activations.harvesting import LiveActivations, harvest
from activations.prompts import Prompt, Role
from activations.store import ActivationStore
from activations.tokens import TokenBatch, tokenize_prompts
from diffing import FeatureRanking
from diffing.positions import Positions
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents

CONFIG = RankingConfig(replicates=300, min_prompts=1)
PLANTED = 5
COLUMNS = [
    *("latent", "rank", "shift", "low", "high", "t", "p", "q", "p_sign_flip", "stability"),
    *("mean_base", "frequency_base", "max_base", "mean_corrupted", "frequency_corrupted", "max_corrupted"),
    *("frequency_shift", "max_shift", "shift_prompt", "shift_last_prompt", "shift_answer", "shift_all"),
    *("cosine_mean_difference", "projection_encoder", "projection_decoder"),
]
NULL_COLUMNS = ["null_low", "null_high", "null_sd", "exceeds_null"]
BENIGN_COLUMNS = ["shift_benign", "low_benign", "high_benign", "q_benign", "shift_difference"]


def shifted(
    batch: TokenBatch, strength: float, roles: tuple[Role, ...] = (Role.PROMPT, Role.LAST_PROMPT, Role.ANSWER)
) -> list[torch.Tensor]:
    """The base's activations with the planted latent's decoder row added at positions with these roles."""
    row = tiny_sae().W_dec[PLANTED].detach().float()
    activations = random_activations(batch, seed=1)
    for rows, role in zip(activations, batch.roles, strict=True):
        rows[torch.from_numpy(np.isin(role, roles))] += strength * row
    return activations


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    return ragged_batch(20)


@pytest.fixture(scope="module")
def stores(batch: TokenBatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationStore]:
    folder = tmp_path_factory.mktemp("stores")
    strengths = {"base": 0.0, "corrupted": 4.0, "benign": 0.2}
    return {name: write_store(folder / name, batch, shifted(batch, c)) for name, c in strengths.items()}


@pytest.fixture(scope="module")
def ranking(stores: dict[str, ActivationStore]) -> FeatureRanking:
    return rank_latents(
        tiny_sae(), Compared(stores["base"], stores["corrupted"], benign=stores["benign"]), HOOK, CONFIG
    )


def by_latent(ranking: FeatureRanking) -> pd.DataFrame:
    return ranking.to_pandas().set_index("latent").sort_index()


def test_the_planted_latent_is_first(ranking: FeatureRanking) -> None:
    first = ranking.top(1).iloc[0]
    assert first["latent"] == PLANTED
    assert first["q"] < 1e-6
    assert first["low"] > 0
    assert first["low"] < first["shift"] < first["high"]
    assert first["shift_difference"] == pytest.approx(first["shift"] - first["shift_benign"])
    assert abs(first["shift_benign"]) < 0.1 * first["shift"]


def test_ranks_follow_absolute_shift(ranking: FeatureRanking) -> None:
    table = ranking.to_pandas()
    assert list(table.columns) == COLUMNS + BENIGN_COLUMNS
    assert table["rank"].tolist() == list(range(1, LATENTS + 1))
    assert table["shift"].abs().is_monotonic_decreasing
    assert np.any(table["shift"] < 0)
    assert sorted(table["latent"]) == list(range(LATENTS))
    np.testing.assert_allclose(table["shift"], table["mean_corrupted"] - table["mean_base"], atol=1e-12)


def further_benign(folder: Path, batch: TokenBatch) -> dict[str, ActivationStore]:
    """Two more harmless fine-tunes; the second moves the planted latent down, and farther."""
    strengths = {"benign-1": 0.1, "benign-2": -0.5}
    return {name: write_store(folder / name, batch, shifted(batch, c)) for name, c in strengths.items()}


@pytest.mark.parametrize("positions", ["prompt", "answer"])
def test_the_null_is_the_shifts_of_all_benign_fine_tunes(
    tmp_path: Path, batch: TokenBatch, stores: dict[str, ActivationStore], positions: Positions
) -> None:
    """Breaks if a benign fine-tune is left out, its shift is over other positions, or prompts without them count."""
    config, null = CONFIG.model_copy(update={"positions": positions}), further_benign(tmp_path, batch)
    ranking = rank_latents(
        tiny_sae(), Compared(stores["base"], stores["corrupted"], benign=stores["benign"], null=null), HOOK, config
    )
    assert ranking.config["null"] == ["benign", "benign-1", "benign-2"]
    table = by_latent(ranking)
    assert list(ranking.table.columns) == COLUMNS + BENIGN_COLUMNS + NULL_COLUMNS
    alone = [
        by_latent(rank_latents(tiny_sae(), Compared(stores["base"], store), HOOK, config))["shift"]
        for store in (stores["benign"], *null.values())
    ]
    shifts = np.stack(alone)
    np.testing.assert_allclose(table["null_low"], shifts.min(0), atol=1e-12)
    np.testing.assert_allclose(table["null_high"], shifts.max(0), atol=1e-12)
    np.testing.assert_allclose(table["null_sd"], np.sqrt(((shifts - shifts.mean(0)) ** 2).sum(0) / 2), atol=1e-12)
    farther = table["shift"].abs().to_numpy() > np.abs(shifts).max(0)
    assert table["exceeds_null"].tolist() == farther.tolist()
    assert 0 < farther.sum() < LATENTS
    assert table.loc[PLANTED, "exceeds_null"]
    without = rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, config).table
    pd.testing.assert_frame_equal(ranking.table.filter(COLUMNS), without, check_exact=True)


def test_a_shift_inside_the_null_does_not_exceed_it(
    tmp_path: Path, batch: TokenBatch, stores: dict[str, ActivationStore]
) -> None:
    """Breaks if the sign matters: a benign fine-tune that moves a latent as far the other way is as good a null."""
    down = write_store(tmp_path / "down", batch, shifted(batch, -4.0))
    small = by_latent(
        rank_latents(tiny_sae(), Compared(stores["base"], stores["benign"], null={"benign-1": down}), HOOK, CONFIG)
    )
    assert PLANTED not in np.flatnonzero(small["exceeds_null"])
    np.testing.assert_array_equal(small["null_low"], small["null_high"])
    assert np.isnan(small["null_sd"]).all(), "one fine-tune has no spread"


def test_the_null_must_read_the_same_tokens(tmp_path: Path, stores: dict[str, ActivationStore]) -> None:
    elsewhere = ragged_batch(20, seed=9)
    store = write_store(tmp_path / "elsewhere", elsewhere, random_activations(elsewhere, seed=1))
    with pytest.raises(UserError, match=r"The benign-1 activations .* hold other tokens"):
        rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"], null={"benign-1": store}), HOOK, CONFIG)


def test_identical_models_do_not_shift(stores: dict[str, ActivationStore]) -> None:
    table = rank_latents(tiny_sae(), Compared(stores["base"], stores["base"]), HOOK, CONFIG).table
    assert list(table.columns) == COLUMNS
    for column in ("shift", "low", "high", "t", "cosine_mean_difference"):
        assert np.all(table[column] == 0), column
    assert np.all(table["q"] == 1)
    assert table["latent"].tolist() == list(range(LATENTS))


def test_swapping_the_models_flips_every_sign(stores: dict[str, ActivationStore]) -> None:
    there = by_latent(rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, CONFIG))
    back = by_latent(rank_latents(tiny_sae(), Compared(stores["corrupted"], stores["base"]), HOOK, CONFIG))
    for column in ("shift", "t", "cosine_mean_difference"):
        np.testing.assert_array_equal(back[column], -there[column])
    np.testing.assert_allclose(back["low"], -there["high"], atol=1e-12)
    np.testing.assert_allclose(back["high"], -there["low"], atol=1e-12)
    for column in ("rank", "p", "q"):
        np.testing.assert_array_equal(back[column], there[column])
    np.testing.assert_array_equal(back["mean_base"], there["mean_corrupted"])


def test_cosine_with_the_mean_difference(batch: TokenBatch, stores: dict[str, ActivationStore]) -> None:
    table = by_latent(rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, CONFIG))
    assert table.loc[PLANTED, "cosine_mean_difference"] == pytest.approx(1.0, abs=1e-6)
    expected = (tiny_sae().W_dec @ tiny_sae().W_dec[PLANTED]).detach().numpy()
    np.testing.assert_allclose(table["cosine_mean_difference"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("roles", "moved"),
    [
        ((Role.PROMPT, Role.LAST_PROMPT), {"prompt", "last_prompt", "all"}),
        ((Role.LAST_PROMPT,), {"prompt", "last_prompt", "all"}),
        ((Role.ANSWER,), {"answer", "all"}),
        ((Role.SPECIAL,), set()),
    ],
)
def test_positions(
    tmp_path: Path, batch: TokenBatch, stores: dict[str, ActivationStore], roles: tuple[Role, ...], moved: set[str]
) -> None:
    other = write_store(tmp_path / "other", batch, shifted(batch, 4.0, roles))
    for positions in ("prompt", "last_prompt", "answer", "all"):
        config = RankingConfig(positions=positions, replicates=10)
        table = rank_latents(tiny_sae(), Compared(stores["base"], other), HOOK, config).table
        assert bool(np.any(table["shift"] != 0)) == (positions in moved), positions


def test_prompts_that_nobody_answers_are_ranked(tmp_path: Path, stores: dict[str, ActivationStore]) -> None:
    """Breaks if positions that no prompt has end the ranking, or get a column of zeros."""
    batch = ragged_batch(20)
    unanswered = replace(batch, roles=tuple(np.where(r == Role.ANSWER, Role.SPECIAL, r) for r in batch.roles))
    pair = [write_store(tmp_path / str(c), unanswered, shifted(batch, c)) for c in (0.0, 4.0)]
    table = rank_latents(tiny_sae(), Compared(pair[0], pair[1]), HOOK, CONFIG).table
    assert "shift_answer" not in table
    assert table["latent"].iloc[0] == PLANTED
    with pytest.raises(UserError, match="No prompt has the positions that shift_answer averages"):
        rank_latents(tiny_sae(), Compared(pair[0], pair[1]), HOOK, CONFIG.model_copy(update={"method": "shift_answer"}))


def test_prompts_without_answers_are_left_out(batch: TokenBatch, stores: dict[str, ActivationStore]) -> None:
    config = RankingConfig(positions="answer", replicates=10)
    ranking = rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, config)
    answered = sum(Role.ANSWER in roles for roles in batch.roles)
    assert 2 <= answered < len(batch)
    assert ranking.config["prompts"] == answered
    assert ranking.config["tokens"] == sum(int((roles == Role.ANSWER).sum()) for roles in batch.roles)
    assert np.all(ranking.table["shift"].notna())


def test_only_living_latents_are_tested(stores: dict[str, ActivationStore]) -> None:
    sae = tiny_sae()
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    table = by_latent(rank_latents(sae, Compared(stores["base"], stores["corrupted"]), HOOK, CONFIG))
    alive = np.asarray(table["frequency_base"] + table["frequency_corrupted"]) > 0
    assert not alive[3]
    assert np.all(table["p"].notna() == alive)
    assert np.all(table["q"].notna() == alive)


def test_rare_latents_can_be_left_untested(stores: dict[str, ActivationStore]) -> None:
    config = RankingConfig(replicates=10, min_prompts=21)
    table = rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, config).table
    assert np.all(table["p"].isna())
    assert np.all(table["q"].isna())


def test_equal_seeds_give_equal_rankings(stores: dict[str, ActivationStore], ranking: FeatureRanking) -> None:
    again = rank_latents(
        tiny_sae(), Compared(stores["base"], stores["corrupted"], benign=stores["benign"]), HOOK, CONFIG
    )
    pd.testing.assert_frame_equal(again.table, ranking.table, check_exact=True)
    other = rank_latents(
        tiny_sae(), Compared(stores["base"], stores["corrupted"]), HOOK, RankingConfig(replicates=300, seed=1)
    )
    assert np.any(other.table["low"] != ranking.table["low"])


def test_other_tokens_are_refused(tmp_path: Path, stores: dict[str, ActivationStore]) -> None:
    elsewhere = ragged_batch(20, seed=9)
    store = write_store(tmp_path / "elsewhere", elsewhere, random_activations(elsewhere, seed=1))
    with pytest.raises(UserError, match=r"The corrupted activations .* hold other tokens.*same prompts"):
        rank_latents(tiny_sae(), Compared(stores["base"], store), HOOK, CONFIG)
    with pytest.raises(UserError, match="The benign activations"):
        rank_latents(tiny_sae(), Compared(stores["base"], stores["corrupted"], benign=store), HOOK, CONFIG)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_live_activations_give_the_ranking_of_stores(
    base: Checkpoint, checkpoint_maker: Callable[..., Path], tmp_path: Path, dtype: StoreDtype
) -> None:
    """Breaks if a ranking depends in its last bit on whether activations were stored."""
    other = load_checkpoint(CheckpointConfig(model=str(checkpoint_maker(tmp_path / "model", seed=1))), "corrupted")
    prompts = [Prompt.chat(str(i), "treat a burn with cool water " * i, answer="salt .") for i in range(1, 9)]
    tokens = tokenize_prompts(prompts, base.tokenizer)
    config = HarvestConfig(hooks=(HOOK,), dtype=dtype, batch_tokens=64, shard_rows=100)
    stored = [harvest(model, tokens, config, tmp_path / model.role, progress=False) for model in (base, other)]
    live = [LiveActivations(model, tokens, config) for model in (base, other)]
    assert stored[0].shards > 1
    rankings = [rank_latents(random_sae(), Compared(one, two), HOOK, CONFIG) for one, two in (stored, live)]
    assert np.any(rankings[0].table["shift"] != 0)
    pd.testing.assert_frame_equal(rankings[1].table, rankings[0].table, check_exact=True)
    assert rankings[1].config["tokens_hash"] == rankings[0].config["tokens_hash"] == tokens.hash


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    single = ragged_batch(1)
    store = write_store(tmp_path / "single", single, random_activations(single, seed=1))
    with pytest.raises(UserError, match="1 of 1 prompts"):
        rank_latents(tiny_sae(), Compared(store, store), HOOK, CONFIG)


def test_save_then_load_is_equal(tmp_path: Path, stores: dict[str, ActivationStore], ranking: FeatureRanking) -> None:
    folder = tmp_path / "ranking"
    ranking.save(folder, {"base": stores["base"].folder})
    loaded = diffing.FeatureRanking.load(str(folder))
    pd.testing.assert_frame_equal(loaded.to_pandas(), ranking.table, check_exact=True)
    assert loaded.config == ranking.config
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "ranking.parquet"), ranking.table, check_exact=True)
    assert set(read_json(folder / "provenance.json")["parents"]) == {"base"}


def test_a_finished_ranking_is_not_overwritten_unasked(tmp_path: Path, ranking: FeatureRanking) -> None:
    ranking.save(tmp_path / "r")
    with pytest.raises(UserError, match="finished artefact"):
        ranking.save(tmp_path / "r")
    more = ranking.with_columns({"cosine_evil": np.zeros(LATENTS)})
    more.save(tmp_path / "r", overwrite=True)
    assert "cosine_evil" in FeatureRanking.load(tmp_path / "r").table


def test_damaged_rankings_are_refused(tmp_path: Path, ranking: FeatureRanking) -> None:
    ranking.save(tmp_path / "r")
    table = tmp_path / "r" / "ranking.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        FeatureRanking.load(tmp_path / "r")
    table.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        FeatureRanking.load(tmp_path / "r")
    (tmp_path / "r" / "config.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        FeatureRanking.load(tmp_path / "r")


def test_new_columns_are_indexed_by_latent(ranking: FeatureRanking) -> None:
    wider = ranking.with_columns({"cosine_evil": np.arange(LATENTS) / 10})
    assert np.all(wider.table["cosine_evil"] == wider.table["latent"] / 10)
    assert "cosine_evil" not in ranking.table
    with pytest.raises(ValueError, match="has 3 values"):
        ranking.with_columns({"x": np.zeros(3)})


def test_a_notebook_gets_a_copy(ranking: FeatureRanking) -> None:
    table = ranking.to_pandas()
    table["shift"] = 0.0
    assert np.any(ranking.table["shift"] != 0)


def test_importing_the_artefact_is_light() -> None:
    heavy = {"torch", "sae_lens", "transformers", "wandb"}
    code = f"import sys; from diffing import FeatureRanking; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_store_is_what_the_tests_think(stores: dict[str, ActivationStore], batch: TokenBatch) -> None:
    assert stores["base"].rows == batch.n_tokens
    assert len(list(stores["base"].chunks(HOOK))) > 1
    assert stores["base"].d_model(HOOK) == D_MODEL
