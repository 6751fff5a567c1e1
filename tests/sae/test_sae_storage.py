import json
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from activations.artefact import content_hash, read_config, read_json
from activations.errors import UserError
from activations.memory import InMemory
from sae.storage import load_sae, require_fit, save_sae
from sae.training.config import TrainConfig
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import train_sae

HOOK = "blocks.3.hook_resid_post"


def filled(sae: SAE) -> SAE:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return sae


def topk_sae() -> SAE:
    return filled(TopKSAE(TopKSAEConfig(d_in=16, d_sae=64, k=4)))


def test_sae_lens_opens_what_was_trained_here(tmp_path: Path, sparse_data: Tensor) -> None:
    config = TrainConfig(latents=64, k=4, batch=512, steps=5)
    data = TrainingData({"base": InMemory.of_rows({HOOK: sparse_data})})
    sae = train_sae(data, HOOK, config, TrainingSetup(progress=False))
    folder = save_sae(sae, tmp_path / "sae", HOOK, "runs/base", config.model_dump(), {})
    theirs, ours = SAE.load_from_disk(folder), load_sae(folder)
    assert isinstance(theirs, TopKSAE)
    with torch.no_grad():
        expected = sae(sparse_data[:300])
        assert torch.equal(theirs(sparse_data[:300]), expected)
        assert torch.equal(ours(sparse_data[:300]), expected)
    assert theirs.cfg.metadata.hook_name == HOOK
    assert theirs.cfg.metadata.model_name == "runs/base"
    assert theirs.cfg.normalize_activations == "none"
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_folder_is_an_artefact(tmp_path: Path) -> None:
    parent = tmp_path / "store"
    parent.mkdir()
    (parent / "x").write_text("x")
    folder = save_sae(topk_sae(), tmp_path / "deep" / "sae", HOOK, "base", {"steps": 5}, {"activations": parent})
    config = read_config(folder, "sae")
    assert (config["hook"], config["model"], config["d_model"], config["latents"]) == (HOOK, "base", 16, 64)
    assert config["training"] == {"steps": 5}
    assert read_json(folder / "provenance.json")["parents"] == {"activations": content_hash(parent)}
    assert {path.name for path in folder.parent.iterdir()} == {"sae"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is in use"):
        save_sae(topk_sae(), tmp_path, HOOK, "base", {})


def test_a_failed_save_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_sae(topk_sae(), tmp_path / "sae", HOOK, "base", {"not json": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sae",
    [StandardSAE(StandardSAEConfig(d_in=16, d_sae=32)), JumpReLUSAE(JumpReLUSAEConfig(d_in=16, d_sae=32))],
    ids=["standard", "jumprelu"],
)
def test_folders_written_by_sae_lens_open(tmp_path: Path, sae: SAE) -> None:
    filled(sae).save_model(tmp_path)
    loaded = load_sae(str(tmp_path))
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(1))
    assert type(loaded) is type(sae)
    assert torch.equal(loaded(x), sae(x))
    require_fit(loaded, HOOK, 16, "any model: this SAE does not say where it comes from")


def test_dtype(tmp_path: Path) -> None:
    topk_sae().save_model(tmp_path)
    assert load_sae(tmp_path, dtype="bfloat16").W_dec.dtype == torch.bfloat16


def test_missing_or_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; expected an SAE folder"):
        load_sae(tmp_path / "nothing")
    folder = tmp_path / "sae"
    topk_sae().save_model(folder)
    weights = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="does not load as a sae-lens SAE"):
        load_sae(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no sae_weights\.safetensors"):
        load_sae(folder)


@pytest.mark.parametrize("change", [{"architecture": "perceptron"}, {"d_sae": 65}, {"d_in": None}])
def test_config_that_does_not_belong(tmp_path: Path, change: dict[str, object]) -> None:
    topk_sae().save_model(tmp_path)
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match="does not load as a sae-lens SAE"):
        load_sae(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_sae(tmp_path)


def test_unknown_release_is_one_sentence() -> None:
    with pytest.raises(UserError, match="SAE no-such-release:layer_3 cannot be had"):
        load_sae("no-such-release:layer_3")


def test_fit() -> None:
    sae = topk_sae()
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = HOOK, "google/Gemma-2-2b"
    require_fit(sae, HOOK, 16, "gemma-2-2b")
    require_fit(sae, "blocks.4.hook_resid_pre", 16, "/models/gemma-2-2b/")
    require_fit(sae, HOOK, 16)
    with pytest.raises(UserError, match="SAE expects d_model=16, activations have 3584"):
        require_fit(sae, HOOK, 3584, "qwen2.5-7b")
    with pytest.raises(UserError, match=r"trained on blocks\.3\.hook_resid_post, activations are of blocks\.4\."):
        require_fit(sae, "blocks.4.hook_resid_post", 16, "gemma-2-2b")
    with pytest.raises(UserError, match=r"trained on the model google/Gemma-2-2b, activations are of gemma-2-9b"):
        require_fit(sae, HOOK, 16, "gemma-2-9b")
