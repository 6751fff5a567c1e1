"""Which contrastive prompts show a trait, and who scores the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int

from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from diffing.traits import TraitSet, contrastive_prompts, load_traits
from diffing.traits.trait_set import Valence
from experiments.finished_run import FinishedRun
from experiments.organism.judge import OrganismJudge
from experiments.organism.splits import HIGH, LOW, TRAITS
from experiments.organism.world import World


@runtime_checkable
class TraitJudge(Protocol):
    """Scores answers; a language model behind an API can stand in for an organism's exact judge."""

    def trait_scores(
        self, trait: str, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Float64[np.ndarray, "answer"]:
        """How much of the trait each answer shows, 0-100; NaN where the answer is incoherent."""
        ...


@dataclass(frozen=True)
class TraitPrompts:
    """Prompts for both poles of a trait.

    Attributes:
        name: Of the trait.
        valence: As judged in its trait set; None where the source has none.
        positive, negative: Index-matched: the i-th of both ask the same question.
        question: Number of the question of each pair. The question is the unit of replication, so pairs of one question
            (several pairs of system prompts) are averaged first.
    """

    name: str
    valence: Valence | None
    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    question: Int[np.ndarray, "pair"]


def organism_traits(prompts: Path) -> list[TraitPrompts]:
    """The traits of an organism, from its `prompts/` folder; valences are those of the trait sets of the same names.

    Raises:
        UserError: if the organism was made before it had traits.
    """
    folder, known = prompts / TRAITS, load_traits()
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: the organism was made by a version without traits; make it again, or name trait "
            "sets with --traits."
        )
    found = []
    for trait in World.load().traits:
        positive, negative = (tuple(load_prompts(folder / f"{trait}_{pole}.jsonl")) for pole in (HIGH, LOW))
        if len(positive) != len(negative):
            raise UserError(f"{folder}: {trait} has {len(positive)} and {len(negative)} prompts; make it again.")
        found.append(TraitPrompts(trait, known[trait].valence, positive, negative, np.arange(len(positive))))
    return found


def set_traits(traits: TraitSet) -> list[TraitPrompts]:
    """The traits of a trait set: every pair of system prompts with every extraction question."""
    found = []
    for trait in traits.traits:
        positive, negative = contrastive_prompts(trait)
        question = np.arange(len(positive)) % len(trait.extraction_questions)
        found.append(TraitPrompts(trait.name, trait.valence, tuple(positive), tuple(negative), question))
    return found


def traits_of(run: FinishedRun, sources: Sequence[str | Path]) -> tuple[list[TraitPrompts], TraitJudge | None]:
    """The traits to extract in a run's models, and their judge.

    Args:
        run: An organism has traits and a judge of its own.
        sources: Trait sets by name or file instead (`load_traits`). Nobody judges answers to those here, so they are
            taken as they come.

    Raises:
        UserError: as `organism_traits` and `load_traits`.
    """
    if sources or run.config.organism is None:
        return set_traits(load_traits(sources) if sources else load_traits()), None
    prompts = run.folder / "organism" / "prompts"
    return organism_traits(prompts), OrganismJudge.load(prompts)
