"""Linear probes: does a direction tell two kinds of prompts apart that it was not fitted on, and in other conditions?

A prompt and its counterpart (the same question under the opposite persona, or the same prompt in the other model) are
a pair. Pairs are what is split, so that no probe is tested on the counterpart of a prompt that it was fitted on, and
what counts in the intervals (95%): Newcombe's for the AUC and Wilson's for the accuracy with the number of pairs, both
of which keep their width at 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int
from scipy.optimize import minimize
from scipy.special import expit

from activations.errors import UserError
from diffing.statistics.auc import auc, auc_interval
from diffing.statistics.intervals import Interval, wilson_interval

_MOST_STEPS = 2000
# Largest component of the logistic loss's gradient at what counts as its minimum.
_GRADIENT = 1e-5


@dataclass(frozen=True)
class ProbeData:
    """Mean activations of prompts of two kinds.

    Attributes:
        activations: One row a prompt, for example its `activation_means`.
        positive: Kind of each prompt.
        pair: Number of the pair that each prompt belongs to; the same number means the same prompt in all conditions.

    Raises:
        UserError: if these are not as many, a value is not finite, or all prompts are of one kind.
    """

    activations: Float[np.ndarray, "prompt d_model"]
    positive: Bool[np.ndarray, "label"]
    pair: Int[np.ndarray, "number"]

    def __post_init__(self) -> None:
        if not len(self.activations) == len(self.positive) == len(self.pair):
            raise UserError(
                f"{len(self.activations)} rows of activations, {len(self.positive)} labels and {len(self.pair)} pairs "
                "do not belong together; give one of each for every prompt."
            )
        if not np.isfinite(self.activations).all():
            raise UserError("A probe's activations are not finite; leave out prompts without tokens (`from_pairs`).")
        if self.positive.all() or not self.positive.any():
            raise UserError("A probe needs positive and negative prompts and here is one kind only; add the other.")

    @classmethod
    def from_pairs(
        cls, positive: Float[np.ndarray, "pair d_model"], negative: Float[np.ndarray, "negative_pair d_model"]
    ) -> "ProbeData":
        """Index-matched prompts; a pair in which either has no tokens (NaN) is left out and keeps its number.

        Raises:
            UserError: if the two sides do not hold as many prompts, or no pair is left.
        """
        if len(positive) != len(negative):
            raise UserError(
                f"{len(positive)} positive and {len(negative)} negative prompts are no pairs; give as many of both, in "
                "the same order."
            )
        kept = np.flatnonzero(~np.isnan(positive).any(1) & ~np.isnan(negative).any(1))
        labels = np.repeat([True, False], len(kept))
        return cls(np.concatenate([positive[kept], negative[kept]]), labels, np.concatenate([kept, kept]))

    def of(self, pairs: Int[np.ndarray, "chosen"]) -> "ProbeData":
        """The prompts of these pairs."""
        rows = np.isin(self.pair, pairs)
        return ProbeData(self.activations[rows], self.positive[rows], self.pair[rows])


@dataclass(frozen=True)
class Probe:
    """A hyperplane; scores above zero mean positive.

    Attributes:
        weights: Points towards the positive prompts: as a direction, comparable to any other.
        bias: Added to the projection.
    """

    weights: Float64[np.ndarray, "d_model"]
    bias: float

    def scores(self, activations: Float[np.ndarray, "prompt d_model"]) -> Float64[np.ndarray, "prompt"]:
        return activations.astype(np.float64) @ self.weights + self.bias


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe tells prompts apart.

    Attributes:
        auc: Share of pairs of a positive and a negative prompt in which the positive one scores higher.
        auc_interval: Its 95% interval.
        accuracy: Share of prompts on the right side of zero.
        accuracy_interval: Its 95% interval.
        separation: Distance of the kinds' mean scores in standard deviations (Cohen's d); it still tells probes apart
            where every AUC is 1. Infinite if scores do not vary within the kinds.
        pairs: Number of pairs.
    """

    auc: float
    auc_interval: Interval
    accuracy: float
    accuracy_interval: Interval
    separation: float
    pairs: int

    def to_row(self) -> dict[str, float]:
        """Columns of a table; intervals as `_low` and `_high`."""
        row = {name: value for name, value in asdict(self).items() if not name.endswith("_interval")}
        for name in ("auc", "accuracy"):
            row[f"{name}_low"], row[f"{name}_high"] = getattr(self, f"{name}_interval")
        return row


Fit = Callable[[ProbeData], Probe]


@dataclass(frozen=True)
class LayerSweep:
    """The best of several hooks.

    Attributes:
        best: Hook with the largest separation on the selection pairs; the first of equals.
        selection: Hook -> score on the selection pairs, biased upwards for the best one.
        probe: Of the best hook.
        score: Of that probe on the reporting pairs, which had no part in the choice.
    """

    best: str
    selection: Mapping[str, ProbeScore]
    probe: Probe
    score: ProbeScore


def difference_of_means(data: ProbeData) -> Probe:
    """Mean of the positive - mean of the negative prompts, cut in the middle between the two means.

    Raises:
        UserError: if the means are equal.
    """
    means = [data.activations[side].mean(0, dtype=np.float64) for side in (data.positive, ~data.positive)]
    weights = means[0] - means[1]
    if not weights.any():
        raise UserError("Positive and negative prompts have the same mean activation; choose other positions or hooks.")
    return Probe(weights, -float(weights @ (means[0] + means[1])) / 2)


def logistic(data: ProbeData, l2: float = 0.01) -> Probe:
    """Logistic regression with a ridge: least mean of log(1 + exp(-y z)) + l2 / 2 ||w||^2, by L-BFGS in float64.

    Activations are centred and divided by one number, the root mean square of all centred values, so the ridge means
    the same for every layer and model and no dimension is blown up (our choice); the probe comes back in the
    activations' own units. The bias is free.

    Args:
        data: To fit on.
        l2: Strength of the ridge. 0.01 is our choice: C = 1 / (l2 * prompts) in the terms of scikit-learn.

    Raises:
        UserError: if l2 is not above 0 (separable prompts have no best probe then), or all activations are one.
    """
    if not l2 > 0:
        raise UserError(f"The ridge of a logistic probe must be above 0, not {l2}; prompts that separate need it.")
    rows = data.activations.astype(np.float64)
    centre = rows.mean(0)
    scale = float(np.sqrt(np.square(rows - centre).mean()))
    if scale == 0:
        raise UserError("All prompts have the same activations, so no probe tells them apart; choose other positions.")
    rows, signs = (rows - centre) / scale, np.where(data.positive, 1.0, -1.0)

    def loss(parameters: Float64[np.ndarray, "parameter"]) -> tuple[float, Float64[np.ndarray, "parameter"]]:
        weights, margins = parameters[:-1], signs * (rows @ parameters[:-1] + parameters[-1])
        slopes = -signs * expit(-margins) / len(rows)
        gradient = np.append(slopes @ rows + l2 * weights, slopes.sum())
        return float(np.logaddexp(0, -margins).mean() + l2 / 2 * weights @ weights), gradient

    options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "gtol": _GRADIENT / 10, "ftol": 0.0}
    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options=options)
    if np.abs(found.jac).max() > _GRADIENT:
        raise UserError(f"The logistic probe did not converge in {_MOST_STEPS} steps; give a larger l2 than {l2}.")
    weights = found.x[:-1] / scale
    return Probe(weights, float(found.x[-1] - weights @ centre))


PROBES: Mapping[str, Fit] = {"difference_of_means": difference_of_means, "logistic": logistic}


def split_pairs(
    pairs: Int[np.ndarray, "prompt"], shares: Sequence[float], seed: int = 0
) -> list[Int[np.ndarray, "chosen"]]:
    """Pairs dealt out at random.

    Args:
        pairs: Pair of each prompt, of all conditions that are compared.
        shares: Of the pairs, for each part; they add up to 1.
        seed: Of the deal.

    Raises:
        UserError: if the shares are not positive or do not add up to 1, or a part gets fewer than 2 pairs.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise UserError(f"Shares of pairs must be positive and add up to 1, not {list(shares)}; correct them.")
    dealt = np.random.default_rng(seed).permutation(np.unique(pairs))
    parts = np.split(dealt, np.round(np.cumsum(shares)[:-1] * len(dealt)).astype(int))
    if min(len(part) for part in parts) < 2:
        raise UserError(
            f"{len(dealt)} pairs are too few for parts of {list(shares)}: every part needs at least 2; add prompts."
        )
    return [np.sort(part) for part in parts]


def score_probe(probe: Probe, data: ProbeData) -> ProbeScore:
    """How well a probe tells prompts apart that it was not fitted on.

    Raises:
        UserError: if the probe is of another width.
    """
    if len(probe.weights) != data.activations.shape[1]:
        raise UserError(
            f"A probe of {len(probe.weights)} values cannot read activations of {data.activations.shape[1]}; "
            "take both at one hook."
        )
    scores, positive = probe.scores(data.activations), data.positive
    pairs, positives, negatives = (len(np.unique(data.pair[kind])) for kind in (positive | True, positive, ~positive))
    area, right = auc(scores, positive), float(((scores > 0) == positive).mean())
    return ProbeScore(
        auc=area,
        auc_interval=auc_interval(area, positives, negatives),
        accuracy=right,
        accuracy_interval=wilson_interval(right, pairs),
        separation=separation(scores[positive], scores[~positive]),
        pairs=pairs,
    )


def held_out_score(
    data: ProbeData, fit: Fit = difference_of_means, fitted_share: float = 0.5, seed: int = 0
) -> tuple[Probe, ProbeScore]:
    """A probe fitted on some pairs, and its score on all others.

    Args:
        data: Of one condition.
        fit: One of `PROBES`, or another.
        fitted_share: Of the pairs, to fit on.
        seed: Of the split.

    Raises:
        UserError: as `split_pairs` and the fit, or if either part has one kind of prompts only.
    """
    fitted, tested = split_pairs(data.pair, (fitted_share, 1 - fitted_share), seed)
    probe = fit(data.of(fitted))
    return probe, score_probe(probe, data.of(tested))


def transfer_matrix(
    conditions: Mapping[str, ProbeData],
    fit: Fit = difference_of_means,
    fitted_share: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Every condition's probe, tested on every condition (arXiv 2601.23081 reports it between conditions).

    Pairs are split once for all conditions: a pair that any probe was fitted on is tested in none. A high AUC with a
    low accuracy means that the direction transfers and the threshold does not.

    Args:
        conditions: Name -> data at the same hook; pairs have the same numbers in all of them.
        fit: One of `PROBES`, or another.
        fitted_share: Of the pairs, to fit on.
        seed: Of the split.

    Returns:
        One row for each ordered pair of conditions: `fitted_on`, `tested_on`, and the columns of `ProbeScore`.

    Raises:
        UserError: as `held_out_score`, or if there are no conditions or their widths differ.
    """
    if not conditions:
        raise UserError("There is no condition to fit a probe on; give at least one.")
    pairs = np.concatenate([data.pair for data in conditions.values()])
    fitted, tested = split_pairs(pairs, (fitted_share, 1 - fitted_share), seed)
    probes = {name: fit(data.of(fitted)) for name, data in conditions.items()}
    targets = {name: data.of(tested) for name, data in conditions.items()}
    return pd.DataFrame(
        [
            {"fitted_on": name, "tested_on": target, **score_probe(probe, data).to_row()}
            for name, probe in probes.items()
            for target, data in targets.items()
        ]
    )


def sweep_layers(
    layers: Mapping[str, ProbeData],
    fit: Fit = difference_of_means,
    shares: Sequence[float] = (0.5, 0.25, 0.25),
    seed: int = 0,
) -> LayerSweep:
    """The hook whose probe separates best: fitted on some pairs, chosen on others, reported on the rest.

    Args:
        layers: Hook -> data of the same prompts there.
        fit: One of `PROBES`, or another.
        shares: Of the pairs: to fit on, to choose by, to report.
        seed: Of the split.

    Raises:
        UserError: as `split_pairs` and the fit, if there are no hooks, or their prompts are not the same.
    """
    if not layers or len(shares) != 3:
        raise UserError("A sweep needs at least one hook and three shares of pairs: to fit, to choose and to report.")
    first, *others = layers.values()
    same = (
        np.array_equal(first.pair, other.pair) and np.array_equal(first.positive, other.positive) for other in others
    )
    if not all(same):
        raise UserError("The hooks of a sweep hold different prompts; give the same ones in the same order.")
    fitted, chosen, reported = split_pairs(first.pair, shares, seed)
    probes = {hook: fit(data.of(fitted)) for hook, data in layers.items()}
    selection = {hook: score_probe(probe, layers[hook].of(chosen)) for hook, probe in probes.items()}
    best = max(selection, key=lambda hook: selection[hook].separation)
    return LayerSweep(best, selection, probes[best], score_probe(probes[best], layers[best].of(reported)))


def separation(positive: Float64[np.ndarray, "positive"], negative: Float64[np.ndarray, "negative"]) -> float:
    """Cohen's d: difference of means over the root of the mean variance."""
    apart, spread = positive.mean() - negative.mean(), np.sqrt((positive.var() + negative.var()) / 2)
    if spread > 0:
        return float(apart / spread)
    return float(np.sign(apart) * np.inf) if apart else 0.0
