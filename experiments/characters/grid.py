"""The grid: trait score, attack success and capability of every model under every condition (arXiv 2601.23081)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from activations.checkpoint import Checkpoint
from diffing.behavior.judge import Label
from diffing.behavior.rates import label_tally
from diffing.behavior.trait_judge import TraitJudge
from diffing.statistics.clustered import Tally, mean_interval
from diffing.steering.experiment import QuestionSet
from experiments.characters.cast import Actor, Group
from experiments.characters.conditions import NONE, Condition
from experiments.frame.trials import Trials

TRAIT_SCORE, ATTACK, CAPABILITY = "trait score", "attack success", "capability"
MEASURES = TRAIT_SCORE, ATTACK, CAPABILITY


@dataclass(frozen=True)
class GridCell:
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
Grid = Mapping[GridCell, Tally]


@dataclass(frozen=True)
class Scoring:
    """How answers are scored.

    Attributes:
        trials: Asks models; its judge says what is harmful, an attack's success.
        traits: Every trait that is scored.
        judge: Who scores traits.
    """

    trials: Trials
    traits: Sequence[str]
    judge: TraitJudge

    @cached_property
    def capability(self) -> tuple[QuestionSet, Trials] | None:
        """Questions of fact with trials that count exact answers; None if the run has none."""
        return self.trials.capability()

    def score(self, model: Checkpoint, actor: Actor, conditions: Sequence[Condition]) -> dict[GridCell, Tally]:
        """One model under the conditions that concern it."""
        traits = (actor.trait,) if actor.trait else self.traits
        found: dict[GridCell, Tally] = {}
        for condition in conditions:
            if condition.trait and condition.trait not in traits:
                continue
            scored = (condition.trait,) if condition.trait else traits
            found |= self._under(model, actor, condition, scored)
        return found

    def _under(
        self, model: Checkpoint, actor: Actor, condition: Condition, traits: Sequence[str]
    ) -> dict[GridCell, Tally]:
        half = condition.told(self.trials.lab.reporting)
        counts = self.trials.untouched(model, half)
        found = {GridCell(actor, condition, condition.trait, ATTACK): label_tally(counts, {Label.HARMFUL: 1})}
        records = self.trials.records(model.role, half)
        prompts = [q for q, record in zip(half.questions, records, strict=True) for _ in record["answers"]]
        texts = [text for record in records for text in record["answers"]]
        for trait in traits:
            scores = self.judge.trait_scores(trait, prompts, texts).reshape(len(half.questions), -1)
            found[GridCell(actor, condition, trait, TRAIT_SCORE)] = Tally.of_values(scores)
        if self.capability is not None:
            facts, exact = self.capability
            right = exact.untouched(model, condition.told(facts))
            found[GridCell(actor, condition, condition.trait, CAPABILITY)] = label_tally(right, {Label.HELPFUL: 1})
        return found


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
