"""The contracts in setup.cfg speak of every experiment, whether it was there when they were written or not."""

import configparser
import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/experiment.py"))
EXPERIMENTS = [name for name in EXPERIMENTS if name != "frame"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("experiments", "diffing", "sae", "activations", include_external_packages=True)


def test_every_experiment_is_in_the_contract() -> None:
    """Breaks if a new folder could import another experiment without the contract noticing."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    layers = parser["importlinter:contract:experiments"]["layers"]
    listed = re.findall(
        r"experiments\.(\w+)", next(line for line in layers.splitlines() if "|" in line and "latent_sets" in line)
    )
    assert sorted(listed) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_only_figures_draw(graph: grimp.ImportGraph, name: str) -> None:
    """Breaks if measuring code imports plotting, whatever the module is called."""
    drawing = {"matplotlib", "plotly", "jinja2", "wandb", "rich"}
    modules = [module for module in graph.modules if module.startswith(f"experiments.{name}.")]
    assert modules
    for module in modules:
        direct = {found.split(".")[0] for found in graph.find_modules_directly_imported_by(module)}
        if not module.split(".")[2].startswith("figures"):
            assert not direct & drawing, module
