"""The vectors that `guardrails` treats models with: social valence, traits, the persona direction, and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from activations.prompt_files import load_prompts
from diffing.directions.extract import extract_directions
from diffing.directions.persona_directions import PersonaDirections
from diffing.geometry import unit_rows
from diffing.personality.spaces import trait_matrix, unit_directions
from diffing.personality.trait_directions import TraitDirections
from diffing.personality.valence import PC1, SVV, semantic_valence, trait_map
from experiments.frame.lab import Lab
from experiments.frame.trials import NamedDirection, Trials
from experiments.guardrails.config import GuardrailsConfig
from experiments.names import COVARIANCE, ISOTROPIC

PERSONA = "persona direction"
VALENCE, TRAIT, COMBINATION = "valence", "trait", "combination"
CONTROLS = (ISOTROPIC, COVARIANCE, COMBINATION)


@dataclass(frozen=True)
class BaseVectors:
    """The base's trait directions, as vectors to treat models with.

    Attributes:
        traits: What `trait-directions` wrote for the base.
        hooks: Where vectors are needed.
    """

    traits: TraitDirections
    hooks: Sequence[str]

    @property
    def positions(self) -> list[str]:
        """Those that directions were taken at."""
        return sorted(self.traits.base.config["positions"])

    def directions(self, positions: str) -> dict[str, PersonaDirections]:
        """Directions of all traits, by hook."""
        return {hook: self.traits.base.directions(positions, hook) for hook in self.hooks}

    def of_valence(self, positions: str) -> list[NamedDirection]:
        """SVV and PC1 at every hook, as unit vectors that point to the prosocial pole."""
        units: dict[str, dict[str, Tensor]] = {SVV: {}, PC1: {}}
        for hook, found in self.directions(positions).items():
            poles = (self.traits.pole(pole, found.vectors) for pole in ("prosocial", "antisocial"))
            vector = semantic_valence(found.vectors, *poles).vector
            units[SVV][hook] = vector / vector.norm()
            units[PC1][hook] = trait_map(found.vectors, vector).first
        return [NamedDirection(name, positions, VALENCE, by_hook) for name, by_hook in units.items()]

    def of_traits(self, positions: str) -> list[NamedDirection]:
        """Every trait's direction at every hook, as unit vectors."""
        directions = self.directions(positions)
        return [
            NamedDirection(name, positions, TRAIT, {at: found.unit(name) for at, found in directions.items()})
            for name in next(iter(directions.values())).vectors
        ]


@dataclass(frozen=True)
class Arms:
    """All vectors at the chosen positions, and the chosen hook.

    Attributes:
        treated: SVV, PC1, every trait, and the run's persona direction. SVV and PC1 point to the prosocial pole, traits
            towards more of the trait, the persona direction towards misalignment.
        controls: Isotropic and covariance directions, and random combinations of the traits' unit directions.
        positions: Those that the trait directions were taken at.
        hook: Where one-layer treatments act.
    """

    treated: Sequence[NamedDirection]
    controls: Sequence[NamedDirection]
    positions: str
    hook: str

    @property
    def svv(self) -> NamedDirection:
        return self.treated[0]

    def cosine(self, source: NamedDirection) -> float:
        """Cosine with the SVV at the hook."""
        return float(source.units[self.hook].double() @ self.svv.units[self.hook].double())


def make_arms(trials: Trials, vectors: BaseVectors, positions: str, hook: str) -> Arms:
    """Every vector at every hook."""
    lab, count = trials.lab, trials.controls_of_each_kind
    treated = [*vectors.of_valence(positions), *vectors.of_traits(positions), persona_vector(lab)]
    mixed = combinations(vectors.directions(positions), positions, count, lab.seed)
    return Arms(treated, [*trials.controls, *mixed], positions, hook)


def combinations(
    directions: Mapping[str, PersonaDirections], positions: str, count: int, seed: int
) -> list[NamedDirection]:
    """Random sums of the traits' unit directions, of length 1; the same Gaussian weights at every hook."""
    names = list(next(iter(directions.values())).vectors)
    weights = torch.randn(count, len(names), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixed = {
        hook: unit_rows(weights @ torch.from_numpy(unit_directions(trait_matrix(found.vectors, names)))).float()
        for hook, found in directions.items()
    }
    return [
        NamedDirection(
            f"{COMBINATION} {number}", positions, COMBINATION, {hook: rows[number] for hook, rows in mixed.items()}
        )
        for number in range(count)
    ]


def persona_vector(lab: Lab[GuardrailsConfig]) -> NamedDirection:
    """The direction that the run steered with, at every hook of the base."""
    settings = lab.run.config.directions
    assert settings is not None
    stores = {name: lab.read(lab.base, load_prompts(path)) for name, path in lab.run.config.prompts.personas.items()}
    units = {
        hook: extract_directions(stores, hook, settings.reference, settings.steer_positions).unit(settings.steer)
        for hook in lab.hooks
    }
    return NamedDirection(PERSONA, "", PERSONA, units)
