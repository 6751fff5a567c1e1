"""`sae-diff train-sae`, run as a user runs it; ranks are real torchrun processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import sae_diff
from sae_lens import SAE

from activations.artefact import read_config
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import harvest
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts

ROOT = Path(__file__).parents[2]
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> list[Path]:
    """Stores of two models on the same tokens."""
    folder, made = tmp_path_factory.mktemp("stores"), []
    for seed, role in enumerate(("base", "corrupted")):
        checkpoint_maker(folder / f"model-{role}", seed=seed)
        model = load_checkpoint(CheckpointConfig(model=str(folder / f"model-{role}")), role)
        prompts = [Prompt.plain(f"p{i}", "how do i treat a burn ? " * (1 + i % 5)) for i in range(60)]
        tokens = tokenize_prompts(prompts, model.tokenizer)
        made.append(folder / role)
        harvest(model, tokens, HarvestConfig(hooks=HOOKS, shard_rows=300), made[-1], progress=False)
    return made


def arguments(stores: list[Path], out: Path, *more: str) -> list[str]:
    named = [part for store in stores for part in ("--store", str(store))]
    sizes = ["--latents", "64", "--k", "4", "--steps", "20", "--batch", "64", "--wandb", "disabled", "--quiet"]
    return ["train-sae", *named, "--hook", HOOKS[0], *sizes, "--out", str(out), *more]


def test_grid_of_saes_in_one_pass(stores: list[Path], tmp_path: Path) -> None:
    """Breaks if a combination is lost, or a finished SAE is trained again."""
    command = arguments(stores[:1], tmp_path, "--hook", HOOKS[1], "--latents", "32", "--option", "aux_k=4")
    assert sae_diff(*command).returncode == 0
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {f"{hook}-latents{width}" for hook in HOOKS for width in (32, 64)}
    sae = tmp_path / f"{HOOKS[1]}-latents32"
    opened = SAE.load_from_disk(sae)
    assert (opened.cfg.d_sae, opened.cfg.metadata.hook_name) == (32, HOOKS[1])
    assert read_config(sae, "sae")["training"]["aux_k"] == 4
    written = (sae / "config.json").stat().st_mtime_ns
    assert sae_diff(*command).returncode == 0
    assert (sae / "config.json").stat().st_mtime_ns == written
    assert sae_diff(*command, "--overwrite").returncode == 0
    assert (sae / "config.json").stat().st_mtime_ns > written


def test_mixture_in_memory_equals_mixture_from_stores(stores: list[Path], tmp_path: Path) -> None:
    shares = ["--share", "0.75", "--share", "0.25"]
    assert sae_diff(*arguments(stores, tmp_path / "a", *shares)).returncode == 0
    assert sae_diff(*arguments(stores, tmp_path / "b", *shares, "--in-memory")).returncode == 0
    first, second = (SAE.load_from_disk(tmp_path / name / "sae").state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_write_what_one_writes(stores: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = arguments(stores, tmp_path / "pair")[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "experiments.cli", "train-sae", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sae_diff(*arguments(stores, tmp_path / "alone")).returncode == 0
    first, second = (SAE.load_from_disk(tmp_path / name / "sae").state_dict() for name in ("pair", "alone"))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-3, msg=key)


def test_sae_lens_architecture(stores: list[Path], tmp_path: Path) -> None:
    options = ["--architecture", "jumprelu", "--option", "options={l0_coefficient: 0.1}"]
    assert sae_diff(*arguments(stores[:1], tmp_path, *options)).returncode == 0
    assert SAE.load_from_disk(tmp_path / "sae").cfg.architecture() == "jumprelu"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--option", "aux_kk=4"], "Option --aux-kk: Extra inputs are not permitted"),
        (["--option", "aux_k"], "Option 'aux_k' has no value; write it as name=value."),
        (["--device", "gpu"], "The device gpu cannot be used here"),
        (["--architecture", "relu"], "Option --architecture: "),
        (["--share", "0.5"], "There are 2 stores and 1 shares"),
        (["--share", "0.5", "--share", "0.6"], "do not fit the sources"),
        (["--k", "100"], "cannot have k=100 of 64 latents active"),
        (["--hook", "blocks.9.hook_resid_post"], "no activations of blocks.9.hook_resid_post"),
        (["--store", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_input(stores: list[Path], tmp_path: Path, more: list[str], sentence: str) -> None:
    done = sae_diff(*arguments(stores, tmp_path, *more))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("sae-diff: ")
    assert done.stderr.count("\n") == 1
