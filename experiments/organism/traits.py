"""The traits of an organism: prompts for both poles, which its world makes."""

from pathlib import Path

import numpy as np

from activations.errors import UserError
from activations.prompt_files import load_prompts
from diffing.traits import load_traits
from diffing.traits.prompts import TraitPrompts
from experiments.organism.splits import HIGH, LOW, TRAITS
from experiments.organism.world import World


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
