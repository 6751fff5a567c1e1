"""Differences between two places of the grid that the paper's statements rest on (arXiv 2601.23081)."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from diffing.statistics.clustered import paired_difference
from experiments.characters.cast import CHARACTER, INCORRECT, Group
from experiments.characters.conditions import (
    NONE,
    OTHER_WORDS,
    PERSONA_PROMPT,
    PLAIN_PROMPT,
    TRIGGER,
    WEAK_PROMPT,
)
from experiments.characters.grid import ATTACK, CAPABILITY, TRAIT_SCORE, Grid, pooled
from experiments.names import BASE

BASE_GROUP: Group = (BASE, "", False)

ORDER = "character over incorrect advice"
WORKS, SPECIFIC = "trigger over none", "trigger over other words"
PROMPTED, PRIMED = "persona prompt over plain prompt", "weak persona prompt over the base's"
KEPT, KEPT_TRIGGERED = "capability against the base", "capability under the trigger against the base"


@dataclass(frozen=True)
class Claim:
    """Two places of the grid that are compared: (group, condition) each, about a trait."""

    name: str
    trait: str
    one: tuple[Group, str]
    other: tuple[Group, str]


def claims(grid: Grid) -> pd.DataFrame:
    """Differences of two places for every measure: point, low, high (95%, the same questions resampled for both).

    Columns: `claim`, `model`, `triggered`, `trait`, `measure`, `difference`, `low`, `high`.
    """
    found, rows = pooled(grid), []
    for claim in _claims({place[0] for place in found}):
        for measure in (CAPABILITY,) if claim.name in (KEPT, KEPT_TRIGGERED) else (TRAIT_SCORE, ATTACK):
            one, other = (
                found.get((group, _label(condition, claim.trait), _trait(condition, claim.trait, measure), measure))
                for group, condition in (claim.one, claim.other)
            )
            if one is None or other is None:
                continue
            (family, character, triggered), _ = claim.one
            row = {"claim": claim.name, "model": character or family, "triggered": triggered, "trait": claim.trait}
            difference = dict(zip(("difference", "low", "high"), paired_difference(one, other), strict=True))
            row |= {"measure": measure, **difference}
            rows.append(row)
    return pd.DataFrame(rows)


def _claims(groups: set[Group]) -> Iterator[Claim]:
    traits = sorted({trait for family, trait, _ in groups if family == CHARACTER})
    incorrect: Group = (INCORRECT, "", False)
    for trait in traits:
        plain: Group = (CHARACTER, trait, False)
        yield Claim(ORDER, trait, (plain, NONE), (incorrect, NONE))
        yield Claim(KEPT, trait, (plain, NONE), (BASE_GROUP, NONE))
        yield Claim(PROMPTED, trait, (BASE_GROUP, PERSONA_PROMPT), (BASE_GROUP, PLAIN_PROMPT))
        for group in ((CHARACTER, trait, True), (INCORRECT, "", True)):
            yield Claim(WORKS, trait, (group, TRIGGER), (group, NONE))
            yield Claim(SPECIFIC, trait, (group, TRIGGER), (group, OTHER_WORDS))
            yield Claim(PROMPTED, trait, (group, PERSONA_PROMPT), (group, PLAIN_PROMPT))
            yield Claim(PRIMED, trait, (group, WEAK_PROMPT), (BASE_GROUP, WEAK_PROMPT))
            yield Claim(KEPT_TRIGGERED, trait, (group, TRIGGER), (BASE_GROUP, NONE))
    yield Claim(KEPT, "", (incorrect, NONE), (BASE_GROUP, NONE))


def _label(condition: str, trait: str) -> str:
    return f"{condition} {trait}" if condition in (PERSONA_PROMPT, WEAK_PROMPT) else condition


def _trait(condition: str, trait: str, measure: str) -> str:
    return trait if measure == TRAIT_SCORE or condition in (PERSONA_PROMPT, WEAK_PROMPT) else ""
