"""Which number tells misaligned models from aligned ones best, on kinds of models that it was not fitted on?

Every predictor is fitted and tested in the same way (`held_out`): a latent that is chosen anew in each training fold,
baselines that have one column, and random latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from diffing.prediction.config import EvaluationConfig
from diffing.prediction.held_out import HeldOut, leave_one_kind_out
from diffing.prediction.reading import Shifts
from diffing.statistics.auc import auc, auc_interval, resampled_aucs
from diffing.statistics.bootstrap import draw_cases
from diffing.statistics.correlation import rank_correlation
from diffing.statistics.intervals import Estimate, Interval, percentile_interval, wilson_interval

LATENT, DIRECTION, NORM, KL = "latent", "direction", "norm", "kl"
PREDICTORS = (LATENT, DIRECTION, NORM, KL)


@dataclass(frozen=True)
class Examples:
    """Models that rules are fitted and tested on.

    Attributes:
        values: For each of `PREDICTORS` one row a model: all latents' shifts, or the one column of a baseline.
        misaligned: What each model is, or will be.
        kinds: Its kind.
        units: What is independent: models of one unit are resampled together.
    """

    values: Mapping[str, Float64[np.ndarray, "model _"]]
    misaligned: Bool[np.ndarray, "model"]
    kinds: tuple[str, ...]
    units: tuple[str, ...]

    @classmethod
    def of(
        cls, models: Sequence[Shifts], misaligned: Sequence[bool], kinds: Sequence[str], units: Sequence[str]
    ) -> "Examples":
        """The features of models."""
        values = {LATENT: np.stack([model.latents for model in models])}
        baselines = np.array([[model.direction, model.norm, model.kl] for model in models])
        values |= {name: baselines[:, [i]] for i, name in enumerate((DIRECTION, NORM, KL))}
        return cls(values, np.array(misaligned), tuple(kinds), tuple(units))


@dataclass(frozen=True)
class Accuracy:
    """How well held-out scores tell the models apart; intervals are 95%.

    Attributes:
        auc: Over the pooled scores of all kinds.
        auc_bootstrap: Its percentile interval over models, stratified by class.
        auc_score: Its score interval, which keeps its width where the bootstrap has none (an AUC of 1).
        accuracy: Share of models on the right side of the training threshold.
        accuracy_wilson: Its Wilson interval.
        kinds: Kind -> models on the right side, and models.
    """

    auc: float
    auc_bootstrap: Interval
    auc_score: Interval
    accuracy: float
    accuracy_wilson: Interval
    kinds: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Comparison:
    """All predictors on the same models.

    Attributes:
        held_out: Predictor -> held-out scores.
        accuracy: Predictor -> how good they are.
        ahead: Baseline -> AUC of the latent minus its own, low, high (95%, the same models drawn for both).
        random: Random latents: how many, their mean, lowest and highest AUC, and the share that reach the chosen one's.
    """

    held_out: Mapping[str, HeldOut]
    accuracy: Mapping[str, Accuracy]
    ahead: Mapping[str, Estimate]
    random: Mapping[str, float | int]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, for JSON."""
        return {
            "predictors": {name: asdict(found) for name, found in self.accuracy.items()},
            "random_latent": dict(self.random),
            "latent_minus": {
                name: dict(zip(("auc", "low", "high"), found, strict=True)) for name, found in self.ahead.items()
            },
            "latents": {kind: rule.column for kind, rule in self.held_out[LATENT].rules.items()},
        }


def compare_predictors(examples: Examples, config: EvaluationConfig, seed: int) -> Comparison:
    """Fits and tests every predictor, one kind left out at a time.

    Args:
        examples: The models.
        config: How.
        seed: Of the bootstrap and of the random latents.

    Raises:
        UserError: if without some kind all models are aligned, or all misaligned.
    """
    misaligned, kinds = examples.misaligned, examples.kinds
    held = {
        name: leave_one_kind_out(examples.values[name], misaligned, kinds, config.candidates) for name in PREDICTORS
    }
    weights = draw_cases(examples.units, config.replicates, seed, misaligned)
    draws = {name: resampled_aucs(found.scores, misaligned, weights) for name, found in held.items()}
    accuracy = {name: _accuracy(found.scores, draws[name], examples) for name, found in held.items()}
    ahead = {
        name: Estimate(accuracy[LATENT].auc - accuracy[name].auc, *percentile_interval(draws[LATENT] - draws[name]))
        for name in PREDICTORS
        if name != LATENT
    }
    pool = np.random.default_rng(seed).permutation(_other_latents(examples, held[LATENT]))
    random = _random_latents(examples, pool[: config.random_latents], accuracy[LATENT].auc)
    return Comparison(held, accuracy, ahead, random)


def correlations(
    comparison: Comparison, examples: Examples, rates: Float64[np.ndarray, "model"], replicates: int, seed: int
) -> dict[str, dict[str, float]]:
    """Predictor -> Spearman correlation of held-out scores with `rates`, low, high (95%, over units)."""
    found = {}
    for name, held in comparison.held_out.items():
        values = rank_correlation(held.scores, rates, examples.units, replicates, seed)
        found[name] = dict(zip(("spearman", "low", "high"), values, strict=True))
    return found


def _accuracy(
    scores: Float64[np.ndarray, "model"], draws: Float64[np.ndarray, "replicate"], examples: Examples
) -> Accuracy:
    right = (scores > 0) == examples.misaligned
    value, share = auc(scores, examples.misaligned), float(right.mean())
    units = np.array(examples.units)
    positives, negatives = (len(set(units[chosen].tolist())) for chosen in (examples.misaligned, ~examples.misaligned))
    of_kind = {kind: np.array(examples.kinds) == kind for kind in examples.kinds}
    return Accuracy(
        auc=value,
        auc_bootstrap=percentile_interval(draws),
        auc_score=auc_interval(value, positives, negatives),
        accuracy=share,
        accuracy_wilson=wilson_interval(share, positives + negatives),
        kinds={kind: (int(right[chosen].sum()), int(chosen.sum())) for kind, chosen in of_kind.items()},
    )


def _other_latents(examples: Examples, chosen: HeldOut) -> Int[np.ndarray, "latent"]:
    """Latents that move in some model and were not chosen."""
    return np.setdiff1d(np.flatnonzero((examples.values[LATENT] != 0).any(0)), chosen.columns)


def _random_latents(examples: Examples, drawn: Int[np.ndarray, "latent"], reached: float) -> dict[str, float | int]:
    """Latents that go through the same fit alone."""
    if not len(drawn):
        return {"latents": 0}
    values = examples.values[LATENT]
    aucs = np.array([_auc_of(values[:, [latent]], examples) for latent in drawn.tolist()])
    return {
        "latents": len(aucs),
        "auc": float(aucs.mean()),
        "worst": float(aucs.min()),
        "best": float(aucs.max()),
        "share_as_good": float((aucs >= reached).mean()),
    }


def _auc_of(values: Float64[np.ndarray, "model 1"], examples: Examples) -> float:
    found = leave_one_kind_out(values, examples.misaligned, examples.kinds, 1)
    return auc(found.scores, examples.misaligned)
