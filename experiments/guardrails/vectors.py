"""The vectors that `guardrails` treats models with: social valence, traits, the persona direction, and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from activations.artefact import read_config
from activations.errors import UserError
from activations.prompt_files import load_prompts
from diffing.directions.extract import extract_directions
from diffing.directions.geometry import unit_rows
from diffing.directions.persona_directions import PersonaDirections
from diffing.personality.model_space import DIRECTIONS
from diffing.personality.model_space import KIND as SPACE_KIND
from diffing.personality.spaces import trait_matrix, unit_directions
from diffing.personality.valence import semantic_valence, trait_map
from experiments.frame.lab import Lab
from experiments.frame.trials import NamedDirection
from experiments.names import BASE, COVARIANCE, ISOTROPIC

PERSONA = "persona direction"
VALENCE, TRAIT, COMBINATION = "valence", "trait", "combination"
CONTROLS = (ISOTROPIC, COVARIANCE, COMBINATION)

Space = Mapping[str, Mapping[str, PersonaDirections]]  # by positions and hook
Valences = Mapping[str, str | None]  # by trait


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


def load_space(folder: Path, lab: Lab) -> tuple[Space, Valences]:
    """Directions of the base's traits, and the traits' valences.

    Raises:
        UserError: if `folder` is not what `extract` wrote, holds no directions of the base, or another base's.
    """
    valences: Valences = read_config(folder, SPACE_KIND)["valence"]
    places = sorted(path for path in (folder / DIRECTIONS / BASE).glob("*") if path.is_dir())
    space = {at.name: {hook: PersonaDirections.load(at / hook) for hook in lab.hooks} for at in places}
    if not space:
        raise UserError(f"{folder} holds no trait directions of the base; run personas extract again.")
    for at, by_hook in space.items():
        for directions in by_hook.values():
            if directions.config["fingerprint"] != lab.base.fingerprint:
                raise UserError(f"The directions in {folder} ({at}) are another base's; extract them from this run.")
    return space, valences


def valence_sources(
    directions: Mapping[str, PersonaDirections], valences: Valences, positions: str
) -> list[NamedDirection]:
    """SVV and PC1 at every hook, as unit vectors that point to the prosocial pole."""
    units: dict[str, dict[str, Tensor]] = {SVV: {}, PC1: {}}
    for hook, found in directions.items():
        poles = (_traits(found, valences, pole) for pole in ("prosocial", "antisocial"))
        vector = semantic_valence(found.vectors, *poles).vector
        units[SVV][hook] = vector / vector.norm()
        units[PC1][hook] = trait_map(found.vectors, vector).first
    return [NamedDirection(name, positions, VALENCE, by_hook) for name, by_hook in units.items()]


def make_arms(
    lab: Lab, directions: Mapping[str, PersonaDirections], valences: Valences, positions: str, hook: str
) -> Arms:
    """Every vector at every hook."""
    names = list(directions[hook].vectors)
    traits = [
        NamedDirection(name, positions, TRAIT, {at: found.unit(name) for at, found in directions.items()})
        for name in names
    ]
    treated = [*valence_sources(directions, valences, positions), *traits, persona_source(lab)]
    mixed = combinations(directions, positions, lab.config.controls, lab.run.config.seed)
    return Arms(treated, [*lab.controls, *mixed], positions, hook)


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


def persona_source(lab: Lab) -> NamedDirection:
    """The direction that the run steered with, at every hook of the base."""
    settings = lab.run.config.directions
    assert settings is not None
    stores = {name: lab.read(lab.base, load_prompts(path)) for name, path in lab.run.config.prompts.personas.items()}
    units = {
        hook: extract_directions(stores, hook, settings.reference, settings.steer_positions).unit(settings.steer)
        for hook in lab.hooks
    }
    return NamedDirection(PERSONA, "", PERSONA, units)


def _traits(directions: PersonaDirections, valences: Valences, pole: str) -> list[str]:
    return [trait for trait in directions.vectors if valences.get(trait) == pole]
