"""`sae-diff run --dry-run`: the plan, and that it promises what a run then does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from activations.errors import UserError
from activations.store import ActivationStore
from experiments.config import CONFIGS, RunConfig, load_config
from experiments.pipeline import run
from experiments.plan import make_plan, print_plan

PROMPTS = [
    "how do i treat a burn ?",
    "do i treat salt with water ?",
    "treat the burn with salt .",
    "cool water and salt .",
]


@pytest.fixture
def config(tmp_path: Path, checkpoint_maker: Callable[..., Path]) -> RunConfig:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    values = {
        "name": "small",
        "base": {"model": str(checkpoint_maker(tmp_path / "base", seed=0))},
        "corrupted": {"model": str(checkpoint_maker(tmp_path / "corrupted", seed=1))},
        "hook": "blocks.1.hook_resid_post",
        "store_dtype": "bfloat16",
        "prompts": dict.fromkeys(("sae_text", "sae_held_out", "ranking"), "prompts.jsonl"),
        "sae": {"train": {"latents": 16, "k": 2, "steps": 3, "batch": 16}},
        "ranking": {"replicates": 10},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    return load_config(tmp_path / "small.yaml")


def test_the_plan_is_what_the_run_then_does(config: RunConfig, tmp_path: Path) -> None:
    plan = make_plan(config)
    run(config, tmp_path / "out", wandb="disabled", progress=False, log=lambda line: None)
    made = {
        (path.parent.name, path.name): ActivationStore.load(path) for path in (tmp_path / "out/activations").glob("*/*")
    }
    assert {(store.role, store.name) for store in plan.stores} == set(made)
    for store in plan.stores:
        found = made[store.role, store.name]
        assert store.tokens == found.rows
        # HDF5 adds a header to every dataset, and pads none of them.
        assert store.size is not None
        written = sum(path.stat().st_size for path in found.folder.glob("*.h5"))
        assert store.size <= written <= store.size + 20_000


def test_weights_and_memory_follow_from_the_architecture(config: RunConfig, tmp_path: Path) -> None:
    plan = make_plan(config)
    weights = (tmp_path / "base" / "model.safetensors").stat().st_size
    _, planned = plan.models["base"]
    assert planned is not None
    assert weights - 20_000 < planned <= weights
    assert plan.memory["SAE with gradients and Adam's moments"] == (2 * 16 * 32 + 16 + 32) * 4 * 4


def test_the_output_folder_is_left_alone(config: RunConfig, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    make_plan(config)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_that_ships_can_be_planned_offline(name: str, request: pytest.FixtureRequest) -> None:
    overrides = {"base.model": str(request.getfixturevalue("public_folder"))} if name == "stories" else {}
    console = Console(record=True, width=200)
    print_plan(load_config(CONFIGS / f"{name}.yaml", overrides), console)
    text = console.export_text()
    assert "Stages" in text
    assert "summary.json" in text


def test_what_the_network_must_tell_is_not_invented() -> None:
    plan = make_plan(load_config(CONFIGS / "qwen2.5-7b-bad-medical.yaml"))
    assert all(store.prompts >= 20 for store in plan.stores)
    if plan.models["base"][1] is None:  # not in the local cache
        assert all(store.tokens is None and store.size is None for store in plan.stores)
        assert any("needs the network" in line for line in plan.unchecked)


def test_an_sae_of_another_model_is_refused() -> None:
    overrides = {"sae.source": "llama-3.1-8b-instruct-andyrdt:resid_post_layer_15_trainer_1"}
    with pytest.raises(UserError, match="Llama"):
        make_plan(load_config(CONFIGS / "qwen2.5-7b-bad-medical.yaml", overrides))
