"""Configs, files and options are checked before anything heavy is imported; packages give the names they promise."""

import importlib
import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "scipy",
    "h5py",
    "matplotlib",
    "plotly",
    "wandb",
    "sae_lens",
    "transformer_lens",
    "datasets",
    "openai",
    "peft",
)
LIGHT = (
    "activations.artefact",
    "activations.checkpoint_files",
    "activations.config",
    "activations.device",
    "activations.prompt_files",
    "activations.prompts",
    "diffing.behavior.config",
    "diffing.positions",
    "diffing.prediction.config",
    "diffing.ranking.config",
    "diffing.steering.config",
    "diffing.traits.trait_set",
    "experiments.cli",
    "experiments.model_set",
    "experiments.names",
    "experiments.organism.config",
    "experiments.organism.world",
    "experiments.run.config",
    "experiments.run.finished_run",
    "experiments.stories.config",
    "sae.training.config",
)
PACKAGES = ("activations", "sae", "diffing", "diffing.traits")


def modules_after(code: str) -> set[str]:
    """Names of the modules that a fresh Python holds after running some code."""
    code += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_configs_and_files_are_read_without_anything_heavy():
    """Fails if one of them imports torch, pandas and so on: a wrong option would then be answered seconds later."""
    found = modules_after(f"import {', '.join((*LIGHT, *PACKAGES))}")
    assert set(LIGHT) <= found
    assert not found & set(HEAVY)


def test_a_run_and_traits_are_checked_without_anything_heavy():
    """Fails if reading a config, a prompt file or traits needs what importing them does not."""
    found = modules_after(
        "from pathlib import Path; from experiments.run.config import CONFIGS, load_config; "
        "from diffing.traits import load_traits; from activations import load_prompts; "
        "from experiments.stories.config import GRIM_STORIES; "
        "[load_config(path) for path in CONFIGS.glob('*.yaml')]; load_traits(); load_prompts(GRIM_STORIES)"
    )
    assert not found & set(HEAVY)


@pytest.mark.parametrize(
    "options",
    [
        ("--help",),
        ("latent-sets", "--help"),
        ("latent-sets", "--run", "nowhere"),
        ("latent-sets", "--run", "nowhere", "--samples", "0"),
        ("run", "--config", "nowhere.yaml"),
        ("rank", "--sae", "a", "--base", "nowhere", "--corrupted", "b", "--out", "c"),
        ("rank", "--sae", "a", "--base", "b", "--corrupted", "c", "--out", "d", "--method", "loudness"),
        ("harvest", "--base", "a", "--prompts", "nowhere.jsonl", "--hook", "b", "--out", "c"),
        ("train-sae", "--store", "nowhere", "--hook", "a", "--latents", "8", "--out", "b"),
        ("interference", "--sae", "a", "--store", "nowhere", "--latent", "1", "--strength", "1"),
        ("fine-tunes", "--run", "nowhere", "--out", "a"),
        ("organism", "--out", "a", "--domains", "99"),
    ],
)
def test_wrong_input_is_told_before_anything_heavy_is_imported(options: tuple[str, ...]):
    """Fails if a command imports torch and so on before it looks at its options and files."""
    run = f"""
import sys
from experiments.cli import main
sys.argv = ["sae-diff", *{options!r}]
try:
    main()
except SystemExit as left:
    assert left.code == (0 if "--help" in sys.argv else 2), left.code
else:
    raise AssertionError("it went through")
print()
"""
    code = f"exec({run!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_of_a_package_is_found(name: str):
    """Fails if a name that a package promises is missing, or is looked up where it is not."""
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(dir(package))
    for public in package.__all__:
        found = getattr(package, public)
        assert getattr(found, "__name__", public) == public


@pytest.mark.parametrize("name", PACKAGES)
def test_no_name_of_a_package_is_that_of_a_module_in_it(name: str):
    """Fails for a function called as its module: once that is imported, the package would give the module."""
    package = importlib.import_module(name)
    modules = {found.removeprefix(f"{name}.") for found in sys.modules if found.startswith(f"{name}.")}
    assert not modules & set(package.__all__)


def test_an_unknown_name_is_an_attribute_error():
    """Fails if a misspelt name gives anything but Python's own error."""
    with pytest.raises(AttributeError, match="has no attribute 'load_chekpoint'"):
        importlib.import_module("activations").load_chekpoint  # noqa: B018
