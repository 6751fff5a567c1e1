"""Architectures that sae-lens trains, from our batches."""

from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from torch import Tensor

from activations.errors import UserError
from activations.memory import InMemory
from sae.training.config import TrainConfig
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

HOOK = "blocks.0.hook_resid_post"
OPTIONS = {
    "standard": {"l1_coefficient": 0.5},
    "gated": {"l1_coefficient": 0.5},
    "jumprelu": {"l0_coefficient": 0.05},
    "matryoshka_batchtopk": {"matryoshka_widths": [32, 128]},
}


@pytest.mark.parametrize("architecture", OPTIONS)
def test_trained_and_saved_for_raw_activations(sparse_data: Tensor, architecture: str, tmp_path: Path) -> None:
    """Breaks if the activation scale is not folded in, or what is returned is not what sae-lens opens."""
    config = TrainConfig.model_validate(
        {
            "architecture": architecture,
            "latents": 128,
            "k": 4,
            "batch": 512,
            "steps": 400,
            "lr": 4e-3,
            "options": OPTIONS[architecture],
        }
    )
    data, logged = TrainingData({"base": InMemory.of_rows({HOOK: sparse_data})}), []
    sae = train_sae(data, HOOK, config, TrainingSetup(log=lambda _, metrics: logged.append(metrics), progress=False))
    inference = "jumprelu" if architecture == "matryoshka_batchtopk" else architecture
    assert sae.cfg.architecture() == inference
    error = (sparse_data - sae(sparse_data)).square().sum() / (sparse_data - sparse_data.mean(0)).square().sum()
    assert error.item() == pytest.approx(logged[-1]["fvu"], rel=0.25, abs=0.01)
    assert error.item() < 0.5
    if architecture == "matryoshka_batchtopk":
        assert (sae.encode(sparse_data) > 0).sum(1).double().mean().item() == pytest.approx(4, rel=0.02)
    sae.save_model(tmp_path)
    assert torch.equal(SAE.load_from_disk(tmp_path)(sparse_data[:50]), sae(sparse_data[:50]))


def test_unknown_option(sparse_data: Tensor) -> None:
    config = TrainConfig(architecture="gated", latents=16, batch=8, steps=1, options={"l2_coefficient": 1})
    with pytest.raises(UserError, match=r"l2_coefficient.*GatedTrainingSAEConfig"):
        train_sae(
            TrainingData({"base": InMemory.of_rows({HOOK: sparse_data})}), HOOK, config, TrainingSetup(progress=False)
        )
