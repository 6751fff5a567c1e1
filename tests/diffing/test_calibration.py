"""False discoveries where nothing changed, and power where something did, on a real pair of models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import harvest
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.ranking.prompt_blocks import prompt_blocks
from diffing.statistics.hypothesis import benjamini_hochberg
from diffing.statistics.paired import Moments
from experiments.stories.config import FinetuneConfig
from experiments.stories.finetune import finetune
from sae.training.config import TrainConfig
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

RUNS, Q, MIN_PROMPTS = 200, 0.05, 10


@pytest.fixture(scope="module", params=["random", "public"])
def differences(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint_maker) -> Tensor:
    """Paired differences [prompt latent] of two models, seen by an SAE trained on the first.

    Two of unlike random weights; and a public checkpoint with a fine-tune of it.
    """
    folder = tmp_path_factory.mktemp("pair")
    if request.param == "random":
        models = [checkpoint_maker(folder / f"m{seed}", seed=seed) for seed in (0, 1)]
        return measured(models, random_prompts(), "blocks.1.hook_resid_post", folder)
    base = request.getfixturevalue("public_folder")
    recipe = FinetuneConfig.model_validate({"epochs": 2})
    finetune(CheckpointConfig(model=str(base)), recipe, folder / "tuned", progress=False)
    sentences = [line for story in recipe.text.read_text().splitlines() for line in story.split(". ") if line][:150]
    prompts = [Prompt.plain(f"p{i}", sentence) for i, sentence in enumerate(sentences)]
    return measured([base, folder / "tuned"], prompts, "blocks.0.hook_resid_post", folder)


def random_prompts() -> list[Prompt]:
    words = ["how", "do", "i", "treat", "a", "burn", "?", "with", "cool", "water", "and", "salt", "."]
    draw = np.random.default_rng(0)
    return [Prompt.plain(f"p{i}", " ".join(draw.choice(words, draw.integers(5, 30)))) for i in range(120)]


def measured(models: Sequence[Path], prompts: list[Prompt], hook: str, folder: Path) -> Tensor:
    stores = {}
    for role, path in zip(("base", "corrupted"), models, strict=True):
        model = load_checkpoint(CheckpointConfig(model=str(path)), role)
        tokens = tokenize_prompts(prompts, model.tokenizer)
        stores[role] = harvest(model, tokens, HarvestConfig(hooks=(hook,)), folder / role, progress=False)
    config = TrainConfig(latents=256, k=6, batch=256, steps=150)
    sae = train_sae(TrainingData({"base": stores["base"]}), hook, config, TrainingSetup(progress=False))
    found = [block.means for block in prompt_blocks(sae, stores, hook, "all")]
    return torch.cat([means["corrupted"].activity - means["base"].activity for means in found])


def discoveries(differences: Tensor) -> np.ndarray:
    moments = Moments(differences.shape[1])
    moments.add(differences)
    _, p = moments.paired_t()
    p = np.where((differences != 0).sum(0).numpy() >= MIN_PROMPTS, p, np.nan)
    return benjamini_hochberg(p) < Q


def swapped(differences: Tensor, generator: torch.Generator) -> Tensor:
    """The labels base and corrupted exchanged at random, prompt by prompt: no latent differs on average."""
    signs = torch.randint(0, 2, (len(differences), 1), generator=generator) * 2.0 - 1.0
    return differences * signs


def test_no_more_false_discoveries_than_promised(differences: Tensor) -> None:
    """Breaks if tokens are the units instead of prompts: then nearly every run finds some."""
    generator = torch.Generator().manual_seed(0)
    with_any = sum(bool(discoveries(swapped(differences, generator)).any()) for _ in range(RUNS))
    assert with_any <= scipy.stats.binom.ppf(0.995, RUNS, Q)
    assert discoveries(differences).sum() > 20  # the models do differ


def test_planted_shifts_are_found_at_the_promised_rate(differences: Tensor) -> None:
    """Breaks if q promises less than BH's false discovery rate, or power does not grow with the shift."""
    generator = torch.Generator().manual_seed(1)
    spread = differences.std(0)
    testable = ((differences != 0).sum(0) >= 60).nonzero().squeeze(1)
    planted = testable[torch.randperm(len(testable), generator=generator)[:12]]
    assert len(planted) == 12
    power, rates = [], []
    for size in (0.0, 0.2, 0.4, 0.8):
        found, false = [], []
        for _ in range(50):
            null = swapped(differences, generator)
            null[:, planted] += size * spread[planted]
            marked = discoveries(null)
            hits = int(marked[planted.numpy()].sum())
            found.append(hits / len(planted))
            false.append((int(marked.sum()) - hits if size else int(marked.any())) / max(1, int(marked.sum())))
        power.append(float(np.mean(found)))
        rates.append((float(np.mean(false)), float(np.std(false) / np.sqrt(len(false)))))
    print("power at 0, 0.2, 0.4, 0.8 standard deviations:", power, "FDR and its standard error:", rates)
    assert all(rate <= Q + 2 * error + 1e-9 for rate, error in rates)
    assert power == sorted(power)
    assert power[0] < 0.05 < 0.8 < power[-1]
