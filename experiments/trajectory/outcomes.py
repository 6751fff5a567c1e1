"""Results of the measurements: shifts and rates on the way, and what the same addition does to both ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.behavior.rates import LabelCounts, label_tally, rate_difference, score
from diffing.statistics.clustered import contrast
from diffing.statistics.intervals import percentile_ends
from diffing.statistics.paired import Replicates
from experiments.names import BASE
from experiments.trajectory.config import Moment
from experiments.trajectory.reading import QUANTITIES, UNTOUCHED, CheckpointReading

REPLICATES = 1000
REALIGNED = "re-aligned"


def trajectory_table(readings: Mapping[Moment, CheckpointReading], prompts: Sequence[str], seed: int) -> pd.DataFrame:
    """One row a moment (see `measure`).

    Args:
        readings: By moment; the first is what the others are compared with.
        prompts: Ids of the ranking prompts.
        seed: Of the bootstrap.
    """
    base = next(iter(readings.values()))
    rows = []
    for moment, reading in readings.items():
        place = {"phase": moment.phase, "step": moment.step}
        rows.append({**place, **_shifts(reading, base, prompts, seed), **_rates(reading.counts[UNTOUCHED])})
    return pd.DataFrame(rows)


def _shifts(reading: CheckpointReading, base: CheckpointReading, ids: Sequence[str], seed: int) -> dict[str, float]:
    """Mean differences with intervals over prompts."""
    differences = reading.quantities - base.quantities
    replicates = Replicates(REPLICATES, len(QUANTITIES), seed)
    replicates.add(ids, differences)
    columns = zip(QUANTITIES, differences.mean(0), *percentile_ends(replicates.bootstrap()), strict=True)
    found = {}
    for name, mean, low, high in columns:
        found |= {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _rates(counts: LabelCounts) -> dict[str, float]:
    scores = score(counts)
    ends = {"harmful_low": scores.low, "harmful_high": scores.high}
    return {**ends, **{name: getattr(scores, name) for name in ("harmful", "helpful", "coherent")}}


def masking(base: CheckpointReading, realigned: CheckpointReading, latent: int, strength: float) -> dict[str, Any]:
    """What the latent, and random directions added as strongly, do to the base and to the re-aligned model.

    Args:
        base, realigned: Answers of both models, untouched and steered.
        latent: The toxic one.
        strength: Of what was added (mean residual norms of the base).

    Returns:
        `strength` (mean residual norms of the base); `rows`, one a model and arm: `rates` of answers, and the change
        of harmful ones against the same model untouched with its interval; `excess`, one an arm: how much larger the
        change is in the re-aligned model.
    """
    models = {BASE: base.counts, REALIGNED: realigned.counts}
    toxic = f"latent {latent}"
    arms = [UNTOUCHED, *(arm for arm in base.counts if arm != UNTOUCHED)]
    rows, excess = [], []
    for arm in arms:
        named = {"arm": arm, "control": arm not in (UNTOUCHED, toxic)}
        rows += [{"model": model, **named, **_steered(counts, arm)} for model, counts in models.items()]
        if arm != UNTOUCHED:
            excess.append({**named, **_excess(models, arm)})
    return {"strength": strength, "rows": rows, "excess": excess}


def _steered(counts: Mapping[str, LabelCounts], arm: str) -> dict[str, float]:
    scores = score(counts[arm]).to_dict()
    change = rate_difference(counts[arm], counts[UNTOUCHED])
    rates = {name: float(scores[name]) for name in ("harmful", "low", "high", "helpful", "incoherent")}
    return rates | dict(zip(("change", "change_low", "change_high"), change, strict=True))


def _excess(models: Mapping[str, Mapping[str, LabelCounts]], arm: str) -> dict[str, float]:
    """Difference of the two models' changes; the same questions are resampled for all four rates."""
    signs = {REALIGNED: 1, BASE: -1}
    terms = [
        (sign * side, label_tally(models[model][name]))
        for model, sign in signs.items()
        for name, side in ((arm, 1), (UNTOUCHED, -1))
    ]
    excess, low, high = contrast(terms)
    return {"excess": excess, "low": low, "high": high}
