"""Measures grid and shared structure: every model under every condition, and what moves a model's activations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
from tqdm import tqdm

from activations.checkpoint import Checkpoint
from diffing.statistics.clustered import Tally
from experiments.characters.cast import CHARACTER, Actor
from experiments.characters.causal import Scene, subtract_shifts
from experiments.characters.claims import claims
from experiments.characters.comparison import Comparison, prepare
from experiments.characters.conditions import NONE, OTHER_WORDS, PERSONA_PROMPT, PLAIN_PROMPT, TRIGGER
from experiments.characters.config import CharactersConfig
from experiments.characters.grid import GridCell, grid_table, learning_table
from experiments.characters.structure import (
    KINDS,
    MISALIGNMENT,
    MeanActivations,
    Shift,
    common_latents,
    cosine_pairs,
    mean_activations,
    probe_transfer,
)
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.names import BENIGN, CORRUPTED


@dataclass(frozen=True)
class Facts:
    """What was compared.

    Attributes:
        misaligned: The character that is compared with misalignment.
        hook: Where probes, latents and causal effects are compared.
        shifts: Name of every shift -> its kind.
        toxic: The run's toxic latent.
    """

    misaligned: str
    hook: str
    shifts: Mapping[str, str]
    toxic: int | None


def measure(lab: Lab[CharactersConfig]) -> Measured:
    """Asks every model under every condition, and compares what moves them.

    Raises:
        UserError: if run, set and traits do not fit together, or nobody scores traits.
    """
    comparison = prepare(lab)
    grid, shifts = visit(comparison)
    tables = {**grid_tables(grid), **_share_structure(comparison, shifts)}
    kinds = {shift.name: shift.kind for shift in shifts}
    return Measured(tables, Facts(comparison.misaligned, lab.hook, kinds, lab.toxic))


def visit(comparison: Comparison) -> tuple[dict[GridCell, Tally], list[Shift]]:
    """The grid, and what moves a model; every model is loaded once.

    Final models are measured under all conditions, early checkpoints without one; of each group the first seed's
    activations are compared.
    """
    grid: dict[GridCell, Tally] = {}
    base = BaseMeans.of(comparison)
    shifts, alone = base.shifts_of_the_run(), [comparison.condition(NONE)]
    for actor in tqdm(comparison.cast, desc="grid", unit="model", disable=not comparison.lab.progress):
        model = comparison.load(actor)
        grid |= comparison.scoring.score(model, actor, alone if actor.early else comparison.conditions)
        if actor.member is not None and actor is comparison.first[actor.group]:
            shifts.append(base.shift_of_member(actor, model))
    return grid, sorted(shifts, key=lambda shift: KINDS.index(shift.kind))


def grid_tables(grid: Mapping[GridCell, Tally]) -> dict[str, pd.DataFrame]:
    """Every final model under all conditions, differences between them, and learning."""
    final = {cell: tally for cell, tally in grid.items() if not cell.actor.early}
    return {"grid": grid_table(final), "claims": claims(final), "learning": learning_table(grid)}


def _share_structure(comparison: Comparison, shifts: Sequence[Shift]) -> dict[str, pd.DataFrame]:
    """Cosines, probes and latents of the shifts, and shifts subtracted in one another's models."""
    lab = comparison.lab
    overlaps, latents = common_latents(shifts, lab.config.top, lab.toxic)
    return {
        "cosines": cosine_pairs(lab, shifts),
        "probes": probe_transfer(lab, shifts),
        "overlaps": overlaps,
        "latents": latents,
        "causal": _causal_table(comparison, shifts),
    }


@dataclass(frozen=True)
class BaseMeans:
    """The base's activations on the ranking prompts, which those of other models are compared with.

    Attributes:
        comparison: Models and conditions.
        untouched, plain, trigger, words: The base without a condition, after a plain prompt, after the trigger, and
            after other words.
    """

    comparison: Comparison
    untouched: MeanActivations
    plain: MeanActivations
    trigger: MeanActivations
    words: MeanActivations

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        """Reads the base."""
        conditions = (NONE, PLAIN_PROMPT, TRIGGER, OTHER_WORDS)
        return cls(comparison, *(_under(comparison, comparison.lab.base, name) for name in conditions))

    def shifts_of_the_run(self) -> list[Shift]:
        """Misalignment, persona prompts in the base, and what should not move it, as controls."""
        comparison, lab = self.comparison, self.comparison.lab
        corrupted = _under(comparison, lab.model(CORRUPTED), NONE)
        found = [Shift(MISALIGNMENT, "misalignment", corrupted, self.untouched)]
        for trait in comparison.scoring.traits:
            prompted = _under(comparison, lab.base, PERSONA_PROMPT, trait)
            found.append(Shift(f"persona prompt: {trait}", "persona prompt", prompted, self.plain))
        found.append(Shift("trigger's words in the base", "control", self.trigger, self.words))
        if lab.run.has_benign:
            benign = _under(comparison, lab.model(BENIGN), NONE)
            found.append(Shift("fine-tune: benign", "control", benign, self.untouched))
        return found

    def shift_of_member(self, actor: Actor, model: Checkpoint) -> Shift:
        """What the trigger does in a triggered fine-tune, beyond the base; what another fine-tune is without it."""
        if not actor.triggered:
            alone = _under(self.comparison, model, NONE)
            return Shift(f"fine-tune: {actor.label}", "misalignment", alone, self.untouched)
        after = _under(self.comparison, model, TRIGGER).minus(self.trigger)
        before = _under(self.comparison, model, OTHER_WORDS).minus(self.words)
        return Shift(f"trigger: {actor.trait or actor.family}", "trigger", after, before)


def _under(comparison: Comparison, model: Checkpoint, condition: str, trait: str = "") -> MeanActivations:
    """A model on the ranking prompts under a condition."""
    lab = comparison.lab
    return mean_activations(lab, model, comparison.condition(condition, trait).ask(lab.ranking_prompts))


def _causal_table(comparison: Comparison, shifts: Sequence[Shift]) -> pd.DataFrame:
    """Shifts of one character and of misalignment subtracted wherever it shows; empty if the set lacks it."""
    trait, lab = comparison.misaligned, comparison.lab
    triggered = comparison.first.get((CHARACTER, trait, True))
    if triggered is None:
        return pd.DataFrame()
    scenes = [
        Scene(MISALIGNMENT, lambda: lab.model(CORRUPTED), comparison.condition(NONE)),
        Scene("trigger", lambda: comparison.load(triggered), comparison.condition(TRIGGER)),
        Scene("persona prompt", lambda: lab.base, comparison.condition(PERSONA_PROMPT, trait)),
    ]
    names = (MISALIGNMENT, f"trigger: {trait}", f"persona prompt: {trait}", "trigger's words in the base")
    chosen = [shift for shift in shifts if shift.name in names]
    return subtract_shifts(comparison.trials, scenes, chosen, lab.config)
