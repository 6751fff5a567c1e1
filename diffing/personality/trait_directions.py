"""The result of `trait-directions`: directions of traits in several models of one family, one `ModelSpace` each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from activations.artefact import read_config
from diffing.personality.config import TRAIT_DIRECTIONS, TraitPositions
from diffing.personality.model_space import ModelSpace
from diffing.traits.trait_set import Valence


@dataclass(frozen=True)
class TraitDirections:
    """What a finished `trait-directions` wrote; models are read when they are first asked for.

    Attributes:
        folder: Of the result.
        config: Its `config.json`: "models" (names, the base first), "traits", "valence", "positions", settings, ...
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "TraitDirections":
        """Reads the result's config.

        Raises:
            UserError: if the folder is missing, unfinished, or holds something else.
        """
        return cls(folder, read_config(folder, TRAIT_DIRECTIONS))

    @property
    def valence(self) -> Mapping[str, Valence | None]:
        """Trait -> prosocial, antisocial, neutral, or None; in the order of the trait sets."""
        return self.config["valence"]

    def space(self, model: str) -> ModelSpace:
        """What was measured of a model.

        Raises:
            UserError: if it was not measured.
        """
        return ModelSpace.load(self.folder, model)

    @cached_property
    def base(self) -> ModelSpace:
        """The run's base."""
        return self.space(self.config["models"][0])

    @cached_property
    def others(self) -> list[ModelSpace]:
        """All other models, in order."""
        return [self.space(name) for name in self.config["models"][1:]]

    @property
    def spaces(self) -> list[ModelSpace]:
        """All models, the base first."""
        return [self.base, *self.others]

    def places(self, spaces: Iterable[ModelSpace]) -> list[tuple[ModelSpace, TraitPositions, str]]:
        """Model, positions and hook of all directions of some models that the base has, too."""
        return [
            (space, at, hook)
            for space in spaces
            for at in space.config["positions"]
            for hook in space.config["hooks"]
            if at in self.base.config["positions"]
        ]

    def ordered(self, traits: Iterable[str]) -> list[str]:
        """The same traits in the order of the trait sets, which files of directions do not keep."""
        known = set(traits)
        return [trait for trait in self.valence if trait in known]

    def pole(self, valence: Valence, traits: Iterable[str]) -> list[str]:
        """Those of some traits that have this valence."""
        return [trait for trait in traits if self.valence.get(trait) == valence]
