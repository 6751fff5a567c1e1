"""Trait sets as data: contrastive system prompts, questions and judge prompts, and what is made of them."""

from typing import TYPE_CHECKING

from activations.lazy import lazy_names

if TYPE_CHECKING:
    from diffing.traits.pairs import JudgedPairs, contrastive_prompts, judged_pairs
    from diffing.traits.trait_set import SHIPPED, PromptPair, Trait, TraitSet, load_traits
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "diffing.traits.pairs": ["JudgedPairs", "contrastive_prompts", "judged_pairs"],
            "diffing.traits.trait_set": ["SHIPPED", "PromptPair", "Trait", "TraitSet", "load_traits"],
        },
    )

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
