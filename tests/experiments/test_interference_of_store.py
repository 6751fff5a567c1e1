"""Interference as an artefact: of any SAE and store, kept and read again, counted, printed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from activations.artefact import read_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.harvesting import harvest
from activations.prompts import PROMPT_ROLES, Prompt
from activations.store import ActivationStore
from activations.tokens import tokenize_prompts
from diffing.ranking.config import InterferenceConfig
from diffing.ranking.interference import interference
from diffing.ranking.interference_table import Interference
from experiments.commands.interference import interference_of_store, print_interference
from experiments.commands.requests import InterferenceRequest
from sae.storage import load_sae, save_sae
from sae.training.config import TrainConfig
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

HOOK = "blocks.1.hook_resid_post"
LATENT, STRENGTH = 3, 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """A store base/ of answered chats, and sae/."""
    folder = tmp_path_factory.mktemp("interference")
    model = load_checkpoint(CheckpointConfig(model=str(checkpoint_maker(folder / "model"))), "base")
    prompts = [Prompt.chat(f"p{i}", "how do i treat a burn ? " * (1 + i % 4), answer="with salt .") for i in range(24)]
    tokens = tokenize_prompts(prompts, model.tokenizer)
    store = harvest(model, tokens, HarvestConfig(hooks=(HOOK,)), folder / "base", progress=False)
    settings = TrainConfig(latents=64, k=4, batch=64, steps=50)
    save_sae(
        train_sae(TrainingData({"base": store}), HOOK, settings, TrainingSetup(progress=False)),
        folder / "sae",
        HOOK,
        "base",
        {},
    )
    return folder


def measured(folder: Path, out: Path | None = None, overwrite: bool = False) -> Interference:
    places = {"sae": str(folder / "sae"), "store": folder / "base", "out": out}
    request = InterferenceRequest(**places, overwrite=overwrite, quiet=True)
    return interference_of_store(request, InterferenceConfig(latent=LATENT, strength=STRENGTH))


def test_strengths_are_in_mean_norms_of_prompt_tokens(folder: Path, tmp_path: Path) -> None:
    """Breaks if answers or special tokens enter the norm, or another latent, strength or hook is taken."""
    found, store = measured(folder, tmp_path / "out"), ActivationStore.load(folder / "base")
    norm = float(store.read(HOOK, PROMPT_ROLES).double().norm(dim=1).mean())
    assert norm != pytest.approx(float(store.read(HOOK).double().norm(dim=1).mean()), rel=1e-6)
    assert found.config["residual_norm"] == pytest.approx(norm)
    sae = load_sae(str(folder / "sae"))
    expected = interference(
        sae,
        store,
        HOOK,
        found.config["residual_norm"],
        InterferenceConfig(latent=LATENT, strength=STRENGTH, positions="prompt"),
    )
    pd.testing.assert_frame_equal(found.table, expected, check_exact=True)
    added = STRENGTH * norm * sae.W_dec[LATENT] / sae.W_dec[LATENT].norm()
    rows = store.read(HOOK, PROMPT_ROLES)
    change = (sae.encode(rows + added) - sae.encode(rows))[:, LATENT].mean()
    own = expected.set_index("latent").loc[LATENT, "change"]
    assert own == pytest.approx(float(change), rel=0.2), "prompts weigh alike, rows do not"


def test_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    found = measured(folder, tmp_path / "out")
    again = Interference.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)
    assert (again.latent, again.strength, again.config) == (LATENT, STRENGTH, found.config)
    assert set(read_json(tmp_path / "out/provenance.json")["parents"]) == {"activations"}
    with pytest.raises(UserError, match="finished artefact"):
        measured(folder, tmp_path / "out")
    measured(folder, tmp_path / "out", overwrite=True)
    (tmp_path / "out/interference.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="measure the interference again"):
        Interference.load(tmp_path / "out")


def test_what_is_counted_and_printed(folder: Path) -> None:
    """Breaks if the steered latent or ones that do not move are counted, or the rare ones pass for expected ones."""
    found = measured(folder)
    table = found.table.assign(moved=False, moved_never_co_active=False, expected_rows=2.9)
    others = np.flatnonzero(table["latent"] != LATENT).tolist()
    table.loc[others[:9], "moved"] = True
    table.loc[others[2:6], "moved_never_co_active"] = True
    table.loc[others[4:6], "expected_rows"] = 3.0
    made = replace(found, table=table)
    assert made.counts() == {"moved": 9, "never_co_active": 4, "never_though_expected": 2}
    assert made.moved["latent"].tolist() == table.loc[others[2:6], "latent"].tolist()
    console = Console(record=True, width=200)
    print_interference(made, 3, console)
    text = console.export_text()
    assert "latent 3 added at strength 0.7: 9 other latents move, 4 of them are never active" in text
    assert len(text.splitlines()) == 4 + 3 + 1, "frame, three latents, the sentence"


def test_a_store_without_prompt_tokens_has_no_unit_of_strength(folder: Path, tmp_path: Path) -> None:
    model = load_checkpoint(CheckpointConfig(model=str(folder / "model")), "base")
    only_special = tokenize_prompts([Prompt.plain("p", "<pad> <pad>")], model.tokenizer)
    harvest(model, only_special, HarvestConfig(hooks=(HOOK,)), tmp_path / "special", progress=False)
    with pytest.raises(UserError, match="has no prompt tokens"):
        interference_of_store(
            InterferenceRequest(sae=str(folder / "sae"), store=tmp_path / "special", quiet=True),
            InterferenceConfig(latent=LATENT, strength=STRENGTH),
        )
