"""Rules that call a model misaligned by one number, tested on kinds of models that they were not fitted on.

A rule has a column (a latent; a baseline has only one), a sign, a threshold and a scale. All four come from the
training models. How they are chosen is not published; ours:

- column: of the latents with the largest absolute mean shift over the misaligned training models, the one with the
  best AUC; of those that are equal, the one whose classes lie furthest apart in standard deviations;
- sign: the one that puts the misaligned training models higher;
- threshold: the cut with the best balanced accuracy; of those that are equal, the middle of the widest gap;
- scale: the root of the mean of both classes' variances.

Scores are (sign * value - threshold) / scale: above zero means misaligned, and scores of different folds can be
pooled although they may come from different latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int

from activations.errors import UserError
from diffing.statistics.auc import auc


@dataclass(frozen=True)
class Rule:
    """Fitted on some models.

    Attributes:
        column: Column that is looked at.
        sign: +1 if misaligned models are higher in it, else -1.
        threshold: Cut of sign * value.
        scale: Value of one unit of score.
    """

    column: int
    sign: float
    threshold: float
    scale: float

    def scores(self, values: Float64[np.ndarray, "model column"]) -> Float64[np.ndarray, "model"]:
        """Above zero: misaligned."""
        return (self.sign * values[:, self.column] - self.threshold) / self.scale


@dataclass(frozen=True)
class HeldOut:
    """Scores of models by rules that never saw their kind.

    Attributes:
        scores: Score of each model.
        columns: Column by which each was scored.
        rules: The rule of each kind that was left out.
    """

    scores: Float64[np.ndarray, "model"]
    columns: Int[np.ndarray, "model"]
    rules: Mapping[str, Rule]


def leave_one_kind_out(
    values: Float64[np.ndarray, "model column"],
    misaligned: Bool[np.ndarray, "model"],
    kinds: Sequence[str],
    candidates: int,
) -> HeldOut:
    """Scores each kind of models by a rule that was fitted on all others.

    Args:
        values: Shifts of latents, or the one column of a baseline.
        misaligned: What each model is.
        kinds: Kind of each model.
        candidates: Columns that a rule may choose from.

    Raises:
        UserError: if without some kind all models are aligned, or all misaligned.
    """
    names = np.array(kinds)
    scores, columns = np.zeros(len(names)), np.zeros(len(names), dtype=np.int64)
    rules = {}
    for kind in dict.fromkeys(kinds):
        held = names == kind
        _require_both(misaligned[~held], kind)
        rule = rules[kind] = fit_rule(values[~held], misaligned[~held], candidates)
        scores[held], columns[held] = rule.scores(values[held]), rule.column
    return HeldOut(scores, columns, rules)


def fit_rule(
    values: Float64[np.ndarray, "model column"], misaligned: Bool[np.ndarray, "model"], candidates: int
) -> Rule:
    """The rule that the models give; see the module for how it is chosen.

    Args:
        values: One row a training model.
        misaligned: What each is; some are and some are not.
        candidates: Columns to choose from, by the largest absolute mean over the misaligned ones.
    """
    largest = np.argsort(-np.abs(values[misaligned].mean(0)), kind="stable")[:candidates]
    above, below = values[misaligned][:, largest], values[~misaligned][:, largest]
    apart = above.mean(0) - below.mean(0)
    signs = np.where(apart < 0, -1.0, 1.0)
    scales = np.sqrt((above.var(0) + below.var(0)) / 2)
    scales = np.where(scales > 0, scales, 1.0)  # constant in both classes: any unit does
    aucs = np.array([auc(sign * values[:, i], misaligned) for sign, i in zip(signs, largest, strict=True)])
    # The last key counts first.
    best = int(np.lexsort((-np.abs(apart) / scales, -aucs))[0])
    column, sign = int(largest[best]), float(signs[best])
    return Rule(column, sign, _threshold(sign * values[:, column], misaligned), float(scales[best]))


def _threshold(values: Float64[np.ndarray, "model"], misaligned: Bool[np.ndarray, "model"]) -> float:
    """The cut with the best balanced accuracy, in the middle of the widest gap among equals."""
    distinct = np.unique(values)
    if len(distinct) == 1:
        return float(distinct[0])
    cuts, gaps = (distinct[1:] + distinct[:-1]) / 2, np.diff(distinct)
    called = values[:, None] > cuts
    balanced = called[misaligned].mean(0) - called[~misaligned].mean(0)
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    return float(cuts[best[np.argmax(gaps[best])]])


def _require_both(misaligned: Bool[np.ndarray, "training"], kind: str) -> None:
    if misaligned.all() or not misaligned.any():
        only = "misaligned" if misaligned.any() else "aligned"
        raise UserError(
            f"Without the kind '{kind}' all models that are left are {only}, so nothing can be learned from them; "
            "give the set aligned and misaligned models of at least two kinds each."
        )
