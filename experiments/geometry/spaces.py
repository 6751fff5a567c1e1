"""What `extract` wrote of a run's models, for everything that compares their spaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from activations.artefact import read_config
from diffing.directions.geometry import cosine_matrix
from diffing.personality.config import TraitPositions
from diffing.personality.model_space import KIND as EXTRACT_KIND
from diffing.personality.model_space import ModelSpace
from experiments.organism.trait_levels import trait_levels
from experiments.organism.world import World
from experiments.run.finished_run import FinishedRun


@dataclass(frozen=True)
class Spaces:
    """What `extract` wrote, and the run that it was about.

    Attributes:
        run: The run.
        base: The run's base.
        others: All other models.
        valence: Trait -> prosocial, antisocial, neutral, or None.
        seed: Of all draws.
    """

    run: FinishedRun
    base: ModelSpace
    others: Sequence[ModelSpace]
    valence: Mapping[str, str | None]
    seed: int

    @classmethod
    def load(cls, extracted: Path) -> "Spaces":
        """Reads extract's folder.

        Raises:
            UserError: if it was not written to its end, or the run has moved.
        """
        config = read_config(extracted, EXTRACT_KIND)
        models = [ModelSpace.load(extracted, name) for name in config["models"]]
        run = FinishedRun.load(Path(config["run"]))
        return cls(run, models[0], models[1:], config["valence"], config["seed"])

    @property
    def models(self) -> Sequence[ModelSpace]:
        return [self.base, *self.others]

    @cached_property
    def generator(self) -> pd.DataFrame | None:
        """Cosines of the traits' bundles of personas [trait trait]; None if the world is not known."""
        world = World.load()
        if self.run.config.organism is None or not set(self.valence) <= set(world.traits):
            return None
        known = cosine_matrix(torch.from_numpy(trait_levels(world))).numpy()
        return pd.DataFrame(known, index=pd.Index(list(world.traits)), columns=pd.Index(list(world.traits)))

    def places(self, models: Sequence[ModelSpace]) -> list[tuple[ModelSpace, TraitPositions, str]]:
        """Every place at which these models and the base have directions."""
        return [
            (model, at, hook)
            for model in models
            for at in model.config["positions"]
            for hook in model.config["hooks"]
            if at in self.base.config["positions"]
        ]

    def traits(self, directions: Mapping[str, Tensor]) -> list[str]:
        """Traits that have a direction, in the order of the trait sets (files keep none)."""
        return [trait for trait in self.valence if trait in directions]

    def pole(self, valence: str, traits: Sequence[str]) -> list[str]:
        """Those of a valence."""
        return [trait for trait in traits if self.valence.get(trait) == valence]


def where_equal(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows with these values in these columns."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in values.items():
        chosen &= (table[column] == value).to_numpy()
    return table.loc[chosen]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON holds them: no value instead of NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
