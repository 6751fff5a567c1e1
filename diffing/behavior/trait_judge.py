"""Who scores how much of a trait answers show."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from activations.prompts import Prompt


@runtime_checkable
class TraitJudge(Protocol):
    """Scores answers: an organism's exact judge, or a language model behind an API (`ModelJudge`)."""

    def trait_scores(
        self, trait: str, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Float64[np.ndarray, "answer"]:
        """How much of the trait each answer shows, 0-100; NaN where the answer is incoherent, or has no score."""
        ...


@runtime_checkable
class CoherenceJudge(TraitJudge, Protocol):
    """A judge of traits that tells answers without a score from incoherent ones."""

    def coherence_scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float64[np.ndarray, "answer"]:
        """How coherent each answer is, 0-100; NaN where the judge gives no score."""
        ...
