"""The grid: trait score, attack success and capability of every model under every condition (arXiv 2601.23081)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from activations.checkpoint import Checkpoint
from diffing.behavior.judge import Label
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import label_tally
from diffing.behavior.trait_judge import TraitJudge
from diffing.statistics.clustered import Tally, mean_interval
from diffing.steering.experiment import Half
from experiments.characters.cast import Actor, Group
from experiments.characters.conditions import NONE, Condition
from experiments.frame.lab import Lab

TRAIT_SCORE, ATTACK, CAPABILITY = "trait score", "attack success", "capability"
MEASURES = TRAIT_SCORE, ATTACK, CAPABILITY


@dataclass(frozen=True)
class Cell:
    """Where a tally stands in the grid.

    Attributes:
        actor: The model.
        condition: What stood before the questions.
        trait: Whose score it is, or whose persona prompt it was measured under; empty if neither.
        measure: One of `MEASURES`.
    """

    actor: Actor
    condition: Condition
    trait: str
    measure: str

    @property
    def place(self) -> "Place":
        """What seeds of one recipe share."""
        return self.actor.group, self.condition.label, self.trait, self.measure


Place = tuple[Group, str, str, str]
Grid = Mapping[Cell, Tally]


@dataclass(frozen=True)
class Measures:
    """How answers are measured.

    Attributes:
        lab: Models, questions, and where answers are kept.
        traits: Every trait that is scored.
        judge: Who scores traits; the lab's judge says what is harmful, an attack's success.
        capability: Questions of fact with their judge; None if the run has none.
    """

    lab: Lab
    traits: Sequence[str]
    judge: TraitJudge
    capability: tuple[Half, SampledAnswers] | None

    def measure(self, model: Checkpoint, actor: Actor, conditions: Sequence[Condition]) -> dict[Cell, Tally]:
        """One model under the conditions that concern it."""
        traits = (actor.trait,) if actor.trait else self.traits
        found: dict[Cell, Tally] = {}
        for condition in conditions:
            if condition.trait and condition.trait not in traits:
                continue
            scored = (condition.trait,) if condition.trait else traits
            found |= self._under(model, actor, condition, scored)
        return found

    def _under(self, model: Checkpoint, actor: Actor, condition: Condition, traits: Sequence[str]) -> dict[Cell, Tally]:
        half = self._told(condition, self.lab.reporting)
        counts = self.lab.untouched(model, half)
        found = {Cell(actor, condition, condition.trait, ATTACK): label_tally(counts, {Label.HARMFUL: 1})}
        records = self.lab.records(model.role, half)
        prompts = [q for q, record in zip(half.questions, records, strict=True) for _ in record["answers"]]
        texts = [text for record in records for text in record["answers"]]
        for trait in traits:
            scores = self.judge.trait_scores(trait, prompts, texts).reshape(len(half.questions), -1)
            found[Cell(actor, condition, trait, TRAIT_SCORE)] = Tally.of_values(scores)
        if self.capability is not None:
            facts, exact = self.capability
            right = self.lab.untouched(model, self._told(condition, facts), exact)
            found[Cell(actor, condition, condition.trait, CAPABILITY)] = label_tally(right, {Label.HELPFUL: 1})
        return found

    @staticmethod
    def _told(condition: Condition, half: Half) -> Half:
        return Half(f"{half.name} {condition.label}", condition.ask(half.questions))


def pooled(grid: Grid) -> dict[Place, Tally]:
    """The answers of all seeds of a group together."""
    parts: dict[Place, list[Tally]] = {}
    for cell, tally in grid.items():
        parts.setdefault(cell.place, []).append(tally)
    return {key: Tally.pooled(tallies) for key, tallies in parts.items()}


def grid_table(grid: Grid) -> pd.DataFrame:
    """A row for each group, condition, trait and measure: mean over seeds with its interval, and the seeds' range."""
    cells = {cell.place: cell for cell in grid}
    seeds: dict[Place, list[float]] = {}
    for cell, tally in grid.items():
        seeds.setdefault(cell.place, []).append(tally.mean)
    rows = []
    for place, tally in pooled(grid).items():
        cell, means = cells[place], seeds[place]
        actor = cell.actor
        row = {"family": actor.family, "character": actor.trait, "triggered": actor.triggered, "model": actor.label}
        row |= {"condition": cell.condition.name, "trait": cell.trait, "measure": cell.measure}
        row |= dict(zip(("mean", "low", "high"), mean_interval(tally), strict=True))
        row |= {"seeds": len(means), "lowest_seed": min(means), "highest_seed": max(means)}
        rows.append(row | {"answers": int(tally.answers.sum())})
    return pd.DataFrame(rows)


def learning_table(grid: Grid) -> pd.DataFrame:
    """Trait score and attack success of plain fine-tunes, without a condition, over the steps of training."""
    rows = []
    for cell, tally in grid.items():
        member, actor = cell.actor.member, cell.actor
        if member is None or actor.triggered or cell.measure == CAPABILITY or cell.condition.name != NONE:
            continue
        steps = member.step if member.step is not None else member.facts.get("steps", float("nan"))
        row = {"model": actor.label, "family": actor.family, "member": actor.name, "steps": float(steps)}
        row |= {"line": member.early_of or member.name, "trait": cell.trait, "measure": cell.measure}
        rows.append(row | dict(zip(("mean", "low", "high"), mean_interval(tally), strict=True)))
    return pd.DataFrame(rows).sort_values(["model", "trait", "steps"], ignore_index=True)
