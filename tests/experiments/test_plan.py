"""`sae-diff run --dry-run`: the plan, and that it promises what a run then does."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.store import ActivationStore
from diffing import FeatureRanking
from experiments.run.config import CONFIGS, RunConfig, load_config
from experiments.run.pipeline import run
from experiments.run.plan import make_plan, print_plan

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


@pytest.fixture
def with_null_and_answers(config: RunConfig, tmp_path: Path, checkpoint_maker: Callable[..., Path]) -> RunConfig:
    """Two further benign fine-tunes, and ranking prompts that the corrupted model answers."""
    null = tuple(CheckpointConfig(model=str(checkpoint_maker(tmp_path / f"null{i}", seed=i))) for i in (2, 3))
    return config.model_copy(
        update={"benign_null": null, "ranking_answers": "corrupted", "ranking_answer_tokens": 6, "seed": 1}
    )


def test_the_null_and_the_answers_are_planned_and_made(with_null_and_answers: RunConfig, tmp_path: Path) -> None:
    """Breaks if the null is planned for other prompts than the run harvests, or answers are forgotten."""
    plan, quiet = make_plan(with_null_and_answers), {"wandb": "disabled", "progress": False}
    run(with_null_and_answers, tmp_path / "out", log=lambda line: None, **quiet)
    made = {
        (path.parent.name, path.name): ActivationStore.load(path) for path in (tmp_path / "out/activations").glob("*/*")
    }
    assert {(store.role, store.name) for store in plan.stores} == set(made)
    assert {("benign-1", "ranking"), ("benign-2", "ranking")} < set(made)
    for store in plan.stores:
        assert store.tokens is not None
        assert store.at_most == (store.name == "ranking")
        rows = made[store.role, store.name].rows
        assert rows <= store.tokens if store.at_most else rows == store.tokens
    assert len({store.tokens_hash for (_, name), store in made.items() if name == "ranking"}) == 1
    assert any("corrupted model answer the ranking prompts" in stage for stage in plan.stages)
    assert any("harvest 2 further benign fine-tunes" in stage for stage in plan.stages)
    one = plan.memory["weights of one further benign model"]
    assert one == plan.models["benign-1"][1]
    assert not any("benign-1" in what for what in plan.memory)


def test_activations_of_the_null_need_no_store(with_null_and_answers: RunConfig, tmp_path: Path) -> None:
    """Breaks if the ranking depends on whether the null's activations were stored, or loses a fine-tune."""
    tables = []
    for store in (True, False):
        config = with_null_and_answers.model_copy(update={"store": store})
        run(config, tmp_path / str(store), "disabled", progress=False, log=lambda line: None)
        tables.append(FeatureRanking.load(tmp_path / str(store) / "ranking"))
    assert tables[0].config["null"] == tables[1].config["null"] == ["benign-1", "benign-2"]
    pd.testing.assert_frame_equal(tables[0].table, tables[1].table, check_exact=True)
    assert "shift_answer" in tables[0].table
    assert np.any(tables[0].table["null_low"] < tables[0].table["null_high"])
    assert not (tmp_path / "False/activations").exists()


def test_a_fine_tune_of_the_null_that_is_missing_ends_the_run_at_once(config: RunConfig, tmp_path: Path) -> None:
    missing = config.model_copy(update={"benign_null": (CheckpointConfig(model=str(tmp_path / "nowhere")),)})
    for start in (make_plan, lambda c: run(c, tmp_path / "out", "disabled", progress=False, log=lambda line: None)):
        with pytest.raises(UserError, match=r"benign-1 model .*nowhere"):
            start(missing)
    assert not (tmp_path / "out/activations").exists()


def test_prompts_that_have_answers_are_not_answered_again(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": PROMPTS[0], "answer": "salt ."}))
    with pytest.raises(UserError, match="'a' has an answer of its own; leave ranking_answers out"):
        make_plan(config.model_copy(update={"ranking_answers": "base"}))


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
