"""Trait sets as data: contrastive system prompts, questions and judge prompts, and what is made of them."""

from diffing.traits.pairs import JudgedPairs, contrastive_prompts, judged_pairs
from diffing.traits.trait_set import SHIPPED, PromptPair, Trait, TraitSet, load_traits

__all__ = [
    "SHIPPED",
    "JudgedPairs",
    "PromptPair",
    "Trait",
    "TraitSet",
    "contrastive_prompts",
    "judged_pairs",
    "load_traits",
]
