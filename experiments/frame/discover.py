"""Finds experiments: every folder of this package with an `experiment.py`, and the entry points of other packages.

Another package adds an experiment by an entry point of the group `sae_diff.experiments` that names an instance of
`Experiment`:

    [project.entry-points."sae_diff.experiments"]
    my-question = "my_package.experiment:EXPERIMENT"
"""

import importlib
import importlib.metadata
from functools import cache
from pathlib import Path
from typing import Any

from activations.errors import UserError
from experiments.frame.experiment import Experiment

GROUP = "sae_diff.experiments"


@cache
def experiments() -> dict[str, Experiment[Any]]:
    """All experiments by name: the package's own, then those of entry points.

    Raises:
        UserError: if two have one name, or an entry point names no experiment.
    """
    found: dict[str, Experiment[Any]] = {}
    for place, experiment in (*_own(), *_installed()):
        if not isinstance(experiment, Experiment):
            raise UserError(f"{place} names no experiment; let it name an instance of Experiment.")
        if experiment.name in found:
            raise UserError(f"Two experiments are called {experiment.name} (one is {place}); rename one.")
        found[experiment.name] = experiment
    return found


def find_experiment(name: str) -> Experiment[Any]:
    """The experiment of this name.

    Raises:
        UserError: if there is none.
    """
    known = experiments()
    if name not in known:
        raise UserError(f"There is no experiment '{name}'; choose one of {', '.join(sorted(known))}.")
    return known[name]


def _own() -> list[tuple[str, Any]]:
    folders = sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/experiment.py"))
    names = [f"experiments.{folder}.experiment" for folder in folders if folder != "frame"]
    return [(name, importlib.import_module(name).EXPERIMENT) for name in names]


def _installed() -> list[tuple[str, Any]]:
    points = importlib.metadata.entry_points(group=GROUP)
    return [(f"entry point {point.name} of {GROUP}", point.load()) for point in points]
