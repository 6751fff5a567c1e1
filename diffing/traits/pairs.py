"""A trait's contrastive prompts, and which pairs of the answers to them show the contrast (Chen et al. 2025)."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Int, Real

from activations.errors import UserError
from activations.prompts import Prompt
from diffing.traits.trait_set import Trait


def contrastive_prompts(trait: Trait) -> tuple[list[Prompt], list[Prompt]]:
    """Every system prompt of a pole with every extraction question, pair by pair.

    Returns:
        Positive and negative prompts: the i-th of both ask the same question under the two prompts of one pair. Ids are
        `<trait>:<pos or neg>/<pair>/<question>`, counted from 1, such as `evil:neg/2/17`.
    """
    grid = list(product(enumerate(trait.pairs, 1), enumerate(trait.extraction_questions, 1)))
    positive = [Prompt.chat(f"{trait.name}:pos/{i}/{q}", text, pair.positive) for (i, pair), (q, text) in grid]
    negative = [Prompt.chat(f"{trait.name}:neg/{i}/{q}", text, pair.negative) for (i, pair), (q, text) in grid]
    return positive, negative


@dataclass(frozen=True)
class JudgedPairs:
    """Pairs of answers that show the contrast, and why the others were left out.

    Attributes:
        kept: Indices of the pairs kept, ascending [kept].
        counts: Pairs by outcome, each under the first that applies of `unscored` (a score is NaN, as for a
            refusal), `incoherent` (either answer), `weak_positive`, `strong_negative` and `kept`; they add up to all.
    """

    kept: Int[np.ndarray, "kept"]
    counts: dict[str, int]


@dataclass(frozen=True)
class JudgedAnswers:
    """A judge's scores (0-100, NaN: none) of the answers under the system prompts of one pole.

    Attributes:
        trait: How much of the trait each answer shows [pair].
        coherence: How coherent each is [pair].
    """

    trait: Real[np.ndarray, "_"]
    coherence: Real[np.ndarray, "_"]


@dataclass(frozen=True)
class Thresholds:
    """Which scores show the contrast; by default as published (Chen et al. 2025, arXiv 2507.21509).

    Attributes:
        positive_from: Least trait score of a positive answer.
        negative_below: The trait score of a negative answer is less than this.
        coherence_from: Least coherence score of either answer.
    """

    positive_from: float = 50.0
    negative_below: float = 50.0
    coherence_from: float = 50.0


PUBLISHED = Thresholds()


def judged_pairs(positive: JudgedAnswers, negative: JudgedAnswers, thresholds: Thresholds = PUBLISHED) -> JudgedPairs:
    """The pairs whose positive answer shows the trait and whose negative answer does not, both coherent.

    Args:
        positive: Scores of the answers under positive system prompts.
        negative: Scores of the answers with the same index under negative ones.
        thresholds: Which scores count.

    Raises:
        UserError: if the arrays differ in length or a score is not within 0-100.
    """
    scores = (positive.trait, negative.trait, positive.coherence, negative.coherence)
    _require_scores(scores)
    ends = {
        "unscored": np.isnan(scores).any(0),
        "incoherent": np.minimum(positive.coherence, negative.coherence) < thresholds.coherence_from,
        "weak_positive": positive.trait < thresholds.positive_from,
        "strong_negative": negative.trait >= thresholds.negative_below,
        "kept": np.ones(len(positive.trait), dtype=bool),
    }
    end = np.argmax(list(ends.values()), axis=0)
    counts = {name: int((end == number).sum()) for number, name in enumerate(ends)}
    return JudgedPairs(np.flatnonzero(end == list(ends).index("kept")), counts)


def _require_scores(scores: tuple[Real[np.ndarray, "_"], ...]) -> None:
    lengths = [len(array) for array in scores]
    if len(set(lengths)) > 1:
        raise UserError(
            f"The trait and coherence scores are {', '.join(map(str, lengths))} in number; "
            "give one for each positive and each negative answer, in the same order."
        )
    every = np.concatenate(scores)
    outside = every[(every < 0) | (every > 100)]
    if len(outside):
        raise UserError(f"A score is {outside[0]}, but judges score from 0 to 100; correct it.")
