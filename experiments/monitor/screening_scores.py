"""How well the scores of samples rank the bad ones first, with intervals, and beside random directions.

Labels say which answers are bad. They only judge the ranking; the one thing that is chosen by them, the best trait, is
chosen on one half of the samples and judged on the other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from diffing.statistics.auc import auc, auc_interval, resampled_aucs
from diffing.statistics.bootstrap import draw_cases
from diffing.statistics.hypothesis import monte_carlo_p
from diffing.statistics.intervals import percentile_interval, wilson_interval
from experiments.monitor.training_data import Mixture

# Columns of `screen`: a score, and what the names of further scores start with.
LOSS, RANDOM, TRAIT = "loss", "random", "trait"
ANSWER_ONLY, BEST_TRAIT = ", answer only", "best trait"
SCREENINGS = ("screening", "screening_sae_hook")  # tables, one a hook
_ABOUT = ("id", "unit", "bad", "hook")


def score_screening(
    scored: pd.DataFrame, mixtures: Sequence[Mixture], first: Sequence[float], replicates: int, seed: int
) -> pd.DataFrame:
    """How well every score ranks the bad samples of each mixture first: one row a mixture and score.

    Samples to which the model itself said nothing have no score and are left out. `low`, `high`: 95% bootstrap over
    units, stratified by class. `score_low`, `score_high`: an interval that keeps its width at an AUC of 1.
    `recall_<share>`: bad samples in the first share of the data, and Wilson's interval.

    The row "random" has the mean over random directions of max(AUC, 1 - AUC), as their sign means nothing, and in `low`
    and `high` the central 95% of them. `random_p`: share of the random directions, the direction itself counted in,
    whose AUC lies as far from 0.5.

    The row "best trait": the trait, and the sign, that rank best on one half of each class's units, on the other half;
    `trait` names it. It is missing where a half has samples of one class only.

    Args:
        scored: Samples at one hook, as `screen` scores them.
        mixtures: Of them.
        first: Shares of the data.
        replicates: Of the bootstrap.
        seed: Of the bootstrap, and of the halves.
    """
    rows = []
    for about, part in _parts(scored, mixtures):
        bad, random = part["bad"].to_numpy(dtype=bool), _random_aucs(part)
        taken = (f"{RANDOM} ", f"{TRAIT} ")
        for name in [c for c in part.columns if c not in _ABOUT and not c.startswith(taken)]:
            row = {"score": name, **_row(part, _values(part, name), first, replicates, seed)}
            beside = {} if name == LOSS or name.endswith(ANSWER_ONLY) else {"random_p": _p(row["auc"], random)}
            rows.append({**about, **row, **beside})
        low, high = percentile_interval(random)
        counts = {"samples": len(part), "bad": int(bad.sum())}
        rows.append({**about, **counts, "score": RANDOM, "auc": float(random.mean()), "low": low, "high": high})
        rows += [{**about, **row} for row in _best_trait(part, first, replicates, seed)]
    return pd.DataFrame(rows)


def score_traits(scored: pd.DataFrame, mixtures: Sequence[Mixture], replicates: int, seed: int) -> pd.DataFrame:
    """How well every trait ranks the bad samples first, more of the trait being the more suspect.

    Columns as in `score_screening`, `trait` in place of `score`.
    """
    rows = []
    for about, part in _parts(scored, mixtures):
        random = _random_aucs(part)
        for name in _named(part, TRAIT):
            row = _row(part, _values(part, name), (), replicates, seed)
            rows.append({**about, "trait": name.removeprefix(f"{TRAIT} "), **row, "random_p": _p(row["auc"], random)})
    return pd.DataFrame(rows)


def _parts(scored: pd.DataFrame, mixtures: Sequence[Mixture]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """What is said about each mixture, and its samples that have scores."""
    for mixture in mixtures:
        part = scored.iloc[list(mixture.places)].dropna()
        yield {"mixture": mixture.name, "good": mixture.good, "hook": str(part["hook"].iloc[0])}, part


def _row(
    part: pd.DataFrame, values: Float64[np.ndarray, "sample"], first: Sequence[float], replicates: int, seed: int
) -> dict[str, Any]:
    """Of one score: counts, AUC, intervals, and recall."""
    bad = part["bad"].to_numpy(dtype=bool)
    weights = draw_cases(part["unit"].tolist(), replicates, seed, bad)
    found, counts = auc(values, bad), {"samples": len(part), "bad": int(bad.sum())}
    low, high = percentile_interval(resampled_aucs(values, bad, weights))
    ends = auc_interval(found, int(bad.sum()), int((~bad).sum()))
    intervals = {"low": low, "high": high, "score_low": ends[0], "score_high": ends[1]}
    return {**counts, "auc": found, **intervals, **_recalls(values, bad, first)}


def _best_trait(part: pd.DataFrame, first: Sequence[float], replicates: int, seed: int) -> list[dict[str, Any]]:
    names, chosen = _named(part, TRAIT), _half(part, seed)
    here, rest = part.loc[chosen], part.loc[~chosen]
    if not names or here["bad"].nunique() < 2 or rest["bad"].nunique() < 2:
        return []
    bad = here["bad"].to_numpy(dtype=bool)
    aucs = {name: auc(_values(here, name), bad) for name in names}
    best = max(names, key=lambda name: abs(aucs[name] - 0.5))
    sign, word = (-1.0, "less") if aucs[best] < 0.5 else (1.0, "more")
    row = _row(rest, sign * _values(rest, best), first, replicates, seed)
    trait = f"{word} {best.removeprefix(f'{TRAIT} ')}"
    return [{"score": BEST_TRAIT, "trait": trait, **row, "random_p": _p(row["auc"], _random_aucs(rest))}]


def _half(part: pd.DataFrame, seed: int) -> Bool[np.ndarray, "sample"]:
    """One half of the units of each class, at random."""
    bad, units = part["bad"].to_numpy(dtype=bool), part["unit"].to_numpy()
    generator, chosen = np.random.default_rng(seed), np.zeros(len(part), dtype=bool)
    for stratum in (bad, ~bad):
        names = generator.permutation(np.unique(units[stratum]))
        chosen |= stratum & np.isin(units, names[: len(names) // 2])
    return chosen


def _random_aucs(part: pd.DataFrame) -> Float64[np.ndarray, "direction"]:
    bad = part["bad"].to_numpy(dtype=bool)
    found = np.array([auc(_values(part, name), bad) for name in _named(part, RANDOM)])
    return np.maximum(found, 1 - found)


def _p(found: float, random: Float64[np.ndarray, "direction"]) -> float:
    return float(monte_carlo_p(random >= max(found, 1 - found)))


def _values(part: pd.DataFrame, name: str) -> Float64[np.ndarray, "sample"]:
    return part[name].to_numpy(dtype=np.float64)


def _named(part: pd.DataFrame, kind: str) -> list[str]:
    return [name for name in part.columns if name.startswith(f"{kind} ")]


def _recalls(
    values: Float64[np.ndarray, "sample"], bad: Bool[np.ndarray, "sample"], first: Sequence[float]
) -> dict[str, float]:
    """Share of the bad samples that stand in the first part of the data, the most suspect first."""
    order = np.argsort(-values, kind="stable")
    found = {}
    for share in first:
        recall = float(bad[order[: round(share * len(bad))]].sum() / bad.sum())
        low, high = wilson_interval(recall, int(bad.sum()))
        name = f"recall_{share:g}"
        found |= {name: recall, f"{name}_low": low, f"{name}_high": high}
    return found
