"""Do misalignment, trigger and persona prompt move a model alike? Cosines of shifts, probes of one on another, latents.

A shift compares two ways of asking the same questions, or two models that are asked alike. Words before a question move
a model whatever they mean, so a persona prompt is compared with a plain one, and a trigger with other words, each
beyond what it does to the base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.stats import hypergeom

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from diffing.directions.random_directions import chance_cosine_of_two, covariance_directions
from diffing.personality.probes import PROBES, ProbeData, separation, transfer_matrix
from diffing.positions import Positions
from diffing.ranking.activation_means import activation_means, latent_means
from diffing.statistics.auc import auc
from diffing.statistics.bootstrap import draw_units
from diffing.statistics.intervals import percentile_interval
from experiments.frame.lab import Lab

# Where what precedes the answer has come together; the same tokens in all conditions.
POSITIONS: Positions = "prompt_end"
REPLICATES = 1000
# What the run's own corrupted model is called among the shifts.
MISALIGNMENT = "emergent misalignment"
KINDS = "misalignment", "trigger", "persona prompt", "control"

Rows = Float64[np.ndarray, "question d_model"]


@dataclass(frozen=True)
class MeanActivations:
    """One model's mean activations on prompts, and its latents at the SAE's hook."""

    rows: Mapping[str, Rows]
    latents: Float64[np.ndarray, "question latent"]

    def minus(self, other: "MeanActivations") -> "MeanActivations":
        """What is beyond another model's activations on the same prompts."""
        rows = {hook: found - other.rows[hook] for hook, found in self.rows.items()}
        return MeanActivations(rows, self.latents - other.latents)


@dataclass(frozen=True)
class Shift:
    """Mean activations on the same questions, with and without what moves the model.

    Attributes:
        name: In tables and figures.
        kind: What moved the model: one of `KINDS`.
        after, before: With and without it.
    """

    name: str
    kind: str
    after: MeanActivations
    before: MeanActivations

    def rows(self, hook: str) -> Rows:
        """What each question's activation moved by."""
        return self.after.rows[hook] - self.before.rows[hook]

    @property
    def latents(self) -> Float64[np.ndarray, "latent"]:
        """Mean shift of each latent."""
        return (self.after.latents - self.before.latents).mean(0)


def mean_activations(lab: Lab[Any], model: Checkpoint, prompts: Sequence[Prompt]) -> MeanActivations:
    """A model on prompts, at every hook."""
    held = lab.read(model, prompts)
    rows = {at: activation_means(held, at, POSITIONS) for at in lab.hooks}
    return MeanActivations(rows, latent_means(lab.sae, held, lab.hook, POSITIONS))


def cosine_pairs(lab: Lab[Any], shifts: Sequence[Shift]) -> pd.DataFrame:
    """Cosine of every two mean shifts at every hook: 95% over questions, and what two random directions reach."""
    weights = draw_units(len(shifts[0].after.latents), lab.seed, REPLICATES)
    rows = []
    for hook in lab.hooks:
        chance = chance_cosine_of_two(lab.base_rows[hook], REPLICATES, lab.seed)
        means = {shift.name: shift.rows(hook).mean(0) for shift in shifts}
        draws = {shift.name: weights @ shift.rows(hook) for shift in shifts}
        for one, other in combinations(means, 2):
            low, high = percentile_interval(_cosine(draws[one], draws[other]))
            found = {"cosine": float(_cosine(means[one], means[other])), "low": low, "high": high, "chance": chance}
            rows.append({"hook": hook, "one": one, "other": other, **found})
    return pd.DataFrame(rows)


def probe_transfer(lab: Lab[Any], shifts: Sequence[Shift]) -> pd.DataFrame:
    """Probes at the run's hook that tell a shift's two sides apart, tested on the other shifts' held-out questions.

    Large shifts are told apart by almost any direction (AUC 1), so how far apart counts, too.

    Returns:
        `transfer_matrix` for each kind of probe (`probe`), with `relative`: the separation as a share of that which the
        tested shift's own probe reaches; and what 95% of random directions with the activations' covariance stay below
        on the tested shift: `chance_auc`, and `chance_relative` for its size.
    """
    hook, seed = lab.hook, lab.seed
    data = {shift.name: ProbeData.from_pairs(shift.after.rows[hook], shift.before.rows[hook]) for shift in shifts}
    units = covariance_directions(lab.base_rows[hook], REPLICATES, seed).numpy()
    chance = {name: _chance(one, units) for name, one in data.items()}
    tables = [transfer_matrix(data, fit, seed=seed).assign(probe=name) for name, fit in PROBES.items()]
    return pd.concat([_relative_to_own(table, chance) for table in tables], ignore_index=True)


def common_latents(shifts: Sequence[Shift], top: int, toxic: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Latents among the first `top` of several shifts, by the size of their mean shift.

    Returns:
        Overlaps of every two shifts with what chance gives (hypergeometric), and all latents that are among the first
        of two shifts or more, with their mean shift and place in each; the toxic latent always.
    """
    moved = {shift.name: shift.latents for shift in shifts}
    order = {name: np.argsort(-np.abs(values), kind="stable") for name, values in moved.items()}
    first = {name: set(places[:top].tolist()) for name, places in order.items()}
    number = len(next(iter(moved.values())))
    overlaps = []
    for one, other in combinations_with_replacement(moved, 2):
        shared = len(first[one] & first[other])
        p = float(hypergeom.sf(shared - 1, number, top, top))
        overlaps.append({"one": one, "other": other, "shared": shared, "expected": top**2 / number, "p": p})
    counts = {latent: sum(latent in found for found in first.values()) for latent in set().union(*first.values())}
    wanted = {latent for latent, count in counts.items() if count > 1} | ({toxic} if toxic is not None else set())
    places = {name: np.argsort(found) for name, found in order.items()}
    latents = [
        {"latent": latent, "shift": name, "kind": kind, "mean_shift": float(moved[name][latent])}
        | {"place": int(places[name][latent]) + 1, "in": counts.get(latent, 0), "toxic": latent == toxic}
        for latent in sorted(wanted, key=lambda latent: (-counts.get(latent, 0), latent))
        for name, kind in ((shift.name, shift.kind) for shift in shifts)
    ]
    return pd.DataFrame(overlaps), pd.DataFrame(latents)


def _cosine(
    one: Float64[np.ndarray, "*rows d_model"], other: Float64[np.ndarray, "*rows d_model"]
) -> Float64[np.ndarray, "*rows"]:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.asarray((one * other).sum(-1) / lengths)


def _relative_to_own(table: pd.DataFrame, chance: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """One kind of probe's transfer, its separations as shares of those of the tested shifts' own probes."""
    same = table["fitted_on"] == table["tested_on"]
    own = dict(zip(table.loc[same, "tested_on"], table.loc[same, "separation"], strict=True))
    return table.assign(
        relative=[value / own[name] for value, name in zip(table["separation"], table["tested_on"], strict=True)],
        chance_auc=[chance[name][0] for name in table["tested_on"]],
        chance_relative=[chance[name][1] / own[name] for name in table["tested_on"]],
    )


def _chance(data: ProbeData, units: Float64[np.ndarray, "direction d_model"]) -> tuple[float, float]:
    """What 95% of directions stay below: the AUC, and the size of the separation (Cohen's d)."""
    scores, positive = data.activations.astype(np.float64) @ units.T, data.positive
    found = [(auc(column, positive), abs(separation(column[positive], column[~positive]))) for column in scores.T]
    area, apart = np.quantile(np.array(found), 0.95, axis=0)
    return float(area), float(apart)
