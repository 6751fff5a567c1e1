"""`sae-diff rank`, run as a user runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import Done, sae_diff

from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import harvest
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing import FeatureRanking
from diffing.ranking.methods import METHODS
from sae.storage import save_sae
from sae.training.config import TrainConfig
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """Stores base/ and corrupted/ on the same answered chats, and sae/."""
    folder = tmp_path_factory.mktemp("rank")
    stores = {}
    for seed, role in enumerate(("base", "corrupted")):
        model = load_checkpoint(CheckpointConfig(model=str(checkpoint_maker(folder / f"m-{role}", seed=seed))), role)
        question = "how do i treat a burn ? "
        prompts = [Prompt.chat(f"p{i}", question * (1 + i % 4), answer="with salt .") for i in range(24)]
        tokens = tokenize_prompts(prompts, model.tokenizer)
        stores[role] = harvest(model, tokens, HarvestConfig(hooks=(HOOK,)), folder / role, progress=False)
    data = TrainingData({"base": stores["base"]})
    sae = train_sae(data, HOOK, TrainConfig(latents=64, k=4, batch=64, steps=50), TrainingSetup(progress=False))
    save_sae(sae, folder / "sae", HOOK, "base", {})
    return folder


def rank(folder: Path, *options: str) -> Done:
    named = [part for name in ("sae", "base", "corrupted") for part in (f"--{name}", str(folder / name))]
    return sae_diff("rank", *named, "--quiet", *options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_orders_the_table(folder: Path, tmp_path: Path, method: str) -> None:
    """Breaks if a method's column is missing, or another one orders the table."""
    done = rank(folder, "--out", str(tmp_path), "--method", method, "--replicates", "50")
    assert done.returncode == 0, done.stderr
    ranking = FeatureRanking.load(tmp_path)
    table = ranking.to_pandas()
    assert table[method].abs().is_monotonic_decreasing
    assert np.any(table[method] != 0)
    assert METHODS.keys() == ranking.config["columns"].keys()


def test_ranking_is_printed_with_the_agreement_of_methods(folder: Path, tmp_path: Path) -> None:
    done = rank(folder, "--out", str(tmp_path), "--replicates", "50", "--top", "3")
    assert done.returncode == 0, done.stderr
    assert "agreement of shift" in done.stdout
    assert "overlap 10" in done.stdout
    again = rank(folder, "--out", str(tmp_path))
    assert again.returncode == 2
    assert "finished artefact" in again.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--method", "loudness"], "Option --method: "),
        (["--device", "gpu"], "The device gpu cannot be used here"),
        (["--positions", "middle"], "Option --positions: "),
        (["--hook", "blocks.0.hook_resid_post"], "has no activations of blocks.0.hook_resid_post"),
        (["--base", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_input(folder: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    done = rank(folder, "--out", str(tmp_path / "out"), *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
