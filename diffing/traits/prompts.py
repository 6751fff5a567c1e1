"""Prompts that show both poles of a trait."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from activations.prompts import Prompt
from diffing.traits.pairs import contrastive_prompts
from diffing.traits.trait_set import TraitSet, Valence


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


def set_traits(traits: TraitSet) -> list[TraitPrompts]:
    """The traits of a trait set: every pair of system prompts with every extraction question."""
    found = []
    for trait in traits.traits:
        positive, negative = contrastive_prompts(trait)
        question = np.arange(len(positive)) % len(trait.extraction_questions)
        found.append(TraitPrompts(trait.name, trait.valence, tuple(positive), tuple(negative), question))
    return found
