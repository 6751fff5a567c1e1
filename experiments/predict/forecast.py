"""What measured models predict: of final members, along the fraction of bad data, and of early checkpoints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import UserError
from diffing.prediction.evaluate import (
    DIRECTION,
    KL,
    LATENT,
    NORM,
    PREDICTORS,
    Comparison,
    Examples,
    compare_predictors,
    correlations,
)
from diffing.prediction.held_out import Rule
from diffing.prediction.onset import onset
from diffing.prediction.reading import ModelReading, prompt_shifts
from diffing.statistics.auc import auc, auc_interval
from diffing.statistics.intervals import percentile_ends
from diffing.statistics.paired import Replicates
from diffing.tables import where
from experiments.names import BENIGN
from experiments.predict.config import PredictConfig
from experiments.predict.members import MeasuredModel

HARMFUL, FRACTION = "harmful", "bad_fraction"
# What is followed over the fraction of bad data; the last three are read from the prompts, one by one.
FOLLOWED = (HARMFUL, LATENT, DIRECTION, KL)
# Fractions that a kind must have to be followed.
_FEWEST_FRACTIONS = 3


@dataclass(frozen=True)
class Forecast:
    """How well held-out rules predict how models end; a final member is its own outcome.

    Attributes:
        models: Whose activations are read.
        outcomes: For each, the final member that it became.
        examples: The same as arrays.
        comparison: The predictors.
        correlations: Predictor -> Spearman correlation of its scores with the outcomes' harmful rates.
    """

    models: Sequence[MeasuredModel]
    outcomes: Sequence[MeasuredModel]
    examples: Examples
    comparison: Comparison
    correlations: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(
        cls, models: Sequence[MeasuredModel], outcomes: Sequence[MeasuredModel], config: PredictConfig, seed: int
    ) -> "Forecast":
        """Fits and tests all predictors, leaving out one kind of outcomes at a time.

        Raises:
            UserError: if there are too few kinds to learn from.
        """
        examples = Examples.of(
            [model.shifts for model in models],
            [outcome.rates.harmful >= config.misaligned for outcome in outcomes],
            [outcome.member.kind for outcome in outcomes],
            [outcome.member.name for outcome in outcomes],
        )
        comparison = compare_predictors(examples, config, seed)
        rates = np.array([outcome.rates.harmful for outcome in outcomes])
        with_rates = correlations(comparison, examples, rates, config.replicates, seed)
        return cls(models, outcomes, examples, comparison, with_rates)

    def rows(self) -> dict[str, dict[str, Any]]:
        """By model: how it ended, the latent that scored it, and its held-out scores."""
        held = self.comparison.held_out
        return {
            model.member.name: {
                "outcome_harmful": outcome.rates.harmful,
                "outcome_misaligned": bool(self.examples.misaligned[i]),
                "scored_latent": int(held[LATENT].columns[i]),
                **{f"score_{name}": float(held[name].scores[i]) for name in PREDICTORS},
            }
            for i, (model, outcome) in enumerate(zip(self.models, self.outcomes, strict=True))
        }

    def to_dict(self) -> dict[str, Any]:
        """Numbers for the summary."""
        counts = {"models": len(self.models), "misaligned": int(self.examples.misaligned.sum())}
        counts |= {"fine_tunes": len(set(self.examples.units))}
        return {**counts, **self.comparison.to_dict(), "correlation_with_rate": dict(self.correlations)}

    def steps(self) -> list[dict[str, Any]]:
        """AUC of the same scores among the models of one step, for steps that have both outcomes."""
        taken = [model.member.step for model in self.models]
        rows = []
        for step in sorted({step for step in taken if step is not None}):
            here = np.array([other == step for other in taken])
            misaligned = self.examples.misaligned[here]
            counts = {"models": int(here.sum()), "misaligned": int(misaligned.sum())}
            if 0 < counts["misaligned"] < counts["models"]:
                rows.append({"step": step, **counts, **{name: self._auc_at(name, here) for name in PREDICTORS}})
        return rows

    def _auc_at(self, name: str, here: np.ndarray) -> dict[str, float]:
        misaligned = self.examples.misaligned[here]
        value = auc(self.comparison.held_out[name].scores[here], misaligned)
        low, high = auc_interval(value, int(misaligned.sum()), int((~misaligned).sum()))
        return {"auc": value, "low": low, "high": high}


@dataclass(frozen=True)
class Analysis:
    """Everything that is asked of measured models.

    Attributes:
        measured: All of them, by name.
        config: Thresholds.
        seed: Of every bootstrap.
        final: The forecast of final members.
        early: That of early checkpoints which still behave; a sentence where too few of them do.
    """

    measured: Mapping[str, MeasuredModel]
    config: PredictConfig
    seed: int
    final: Forecast
    early: Forecast | str

    @classmethod
    def of(cls, measured: Mapping[str, MeasuredModel], config: PredictConfig, seed: int) -> "Analysis":
        """Fits all predictors.

        Raises:
            UserError: if the final members have too few kinds to learn from.
        """
        final = [model for model in measured.values() if model.member.early_of is None]
        return cls(measured, config, seed, Forecast.of(final, final, config, seed), _early(measured, config, seed))

    def table(self, base: ModelReading, direction: Float[Tensor, "d_model"]) -> pd.DataFrame:
        """One row a model.

        Args:
            base: What the base shows.
            direction: Unit vector that shifts of activations are projected on.

        Columns:
            name, kind, early_of, step, bad_fraction, facts: What it is; all facts as JSON.
            harmful, harmful_low, harmful_high, helpful, coherent: Rates of its sampled answers (95% over questions).
            latent_index, latent, direction, kl, norm: The latent that the rules fitted without its kind look at, its
                shift, and the baselines; `_low` and `_high` of the first three bound them (95% bootstrap over prompts).
            outcome_harmful, outcome_misaligned: How it ended; missing for early checkpoints that no longer behave.
            scored_latent, score_*: The held-out scores that predict it, and the latent of the first.
        """
        forecast = self.final.rows() | (self.early.rows() if isinstance(self.early, Forecast) else {})
        rows = [
            {**_described(model), **self._features(model, base, direction), **forecast.get(name, {})}
            for name, model in self.measured.items()
        ]
        return pd.DataFrame(rows).astype({"step": "Int64", "scored_latent": "Int64", "outcome_misaligned": "boolean"})

    def summary(self, table: pd.DataFrame) -> dict[str, Any]:
        """Everything but the single models; `table` is that of `table`."""
        early, kinds = self.early, dict.fromkeys(self.final.examples.kinds)
        fractions = {kind: {_fraction(m) for m in self._of(kind)} - {None} for kind in kinds}
        return {
            **self.final.to_dict(),
            "threshold": self.config.misaligned,
            "uncertain_labels": [m.member.name for m in self.final.models if self._is_uncertain(m)],
            "curves": {k: self._curve(k, table) for k, found in fractions.items() if len(found) >= _FEWEST_FRACTIONS},
            "early": {"reason": early} if isinstance(early, str) else {**early.to_dict(), "steps": early.steps()},
        }

    def _of(self, kind: str) -> list[MeasuredModel]:
        """The final members of a kind."""
        return [model for model in self.final.models if model.member.kind == kind]

    def _is_uncertain(self, model: MeasuredModel) -> bool:
        return model.rates.low < self.config.misaligned <= model.rates.high

    def _rules(self, kind: str) -> dict[str, Rule]:
        return {name: held.rules[kind] for name, held in self.final.comparison.held_out.items()}

    def _features(
        self, model: MeasuredModel, base: ModelReading, direction: Float[Tensor, "d_model"]
    ) -> dict[str, float]:
        """What the rules for the model's kind look at, with intervals over prompts."""
        outcome = self.measured[model.member.early_of or model.member.name]
        latent = self._rules(outcome.member.kind)[LATENT].column
        read = model.reading
        values = prompt_shifts(base, read, direction, latent)
        replicates = Replicates(self.config.replicates, values.shape[1], self.seed)
        replicates.add(read.ids, torch.from_numpy(values))
        low, high = percentile_ends(replicates.bootstrap())
        found: dict[str, float] = {"latent_index": latent, NORM: model.shifts.norm}
        for i, (name, mean) in enumerate(zip(FOLLOWED[1:], values.mean(0).tolist(), strict=True)):
            found |= {name: mean, f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
        return found

    def _curve(self, kind: str, table: pd.DataFrame) -> dict[str, Any]:
        """From which fraction of bad data on each measure lies above zero, and above all benign models.

        Benign are the models of the kind "benign", and those of this kind without bad data.
        """
        followed = [model.member.name for model in self._of(kind) if _fraction(model) is not None]
        rows, rules = where(table, table["name"].isin(followed)), self._rules(kind)
        benign = [*self._of(BENIGN), *(model for model in self._of(kind) if _fraction(model) == 0 and kind != BENIGN)]
        onsets = {}
        for name in FOLLOWED:
            sign = rules[name].sign if name in rules else 1.0
            lows = sign * rows[f"{name}_low" if sign > 0 else f"{name}_high"]
            values = [sign * _value(model, name, rules[LATENT].column) for model in benign]
            limit = max(values, default=None)
            onsets[name] = {
                "above_zero": onset(rows[FRACTION], lows, 0.0),
                "largest_benign": None if limit is None else sign * limit,
                "above_benign": None if limit is None else onset(rows[FRACTION], lows, limit),
            }
        return {"latent": rules[LATENT].column, "benign_models": len(benign), "onset": onsets}


def _early(measured: Mapping[str, MeasuredModel], config: PredictConfig, seed: int) -> Forecast | str:
    """The forecast of early checkpoints that still behave, or why there is none."""
    pairs = [
        (model, measured[model.member.early_of])
        for model in measured.values()
        if model.member.early_of is not None and model.rates.harmful < config.still_aligned
    ]
    if not pairs:
        return "The set has no early checkpoints that still behave."
    try:
        return Forecast.of([model for model, _ in pairs], [outcome for _, outcome in pairs], config, seed)
    except UserError as error:
        return f"Early checkpoints that still behave: {error}"


def _described(model: MeasuredModel) -> dict[str, Any]:
    member, rates = model.member, model.rates
    return {
        "name": member.name,
        "kind": member.kind,
        "early_of": member.early_of,
        "step": member.step,
        FRACTION: _fraction(model),
        "facts": json.dumps(dict(member.facts)),
        HARMFUL: rates.harmful,
        "harmful_low": rates.low,
        "harmful_high": rates.high,
        "helpful": rates.helpful,
        "coherent": rates.coherent,
    }


def _fraction(model: MeasuredModel) -> float | None:
    """Fraction of bad data that it was made with, if it says so."""
    found = model.member.facts.get(FRACTION)
    return float(found) if isinstance(found, int | float) else None


def _value(model: MeasuredModel, name: str, latent: int) -> float:
    """One of `FOLLOWED`."""
    if name == HARMFUL:
        return model.rates.harmful
    return float(model.shifts.latents[latent]) if name == LATENT else getattr(model.shifts, name)
