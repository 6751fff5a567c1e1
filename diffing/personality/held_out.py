"""How well a trait's direction holds: split-half reliability, probes, and a layer sweep, each on questions held out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from activations.errors import UserError
from diffing.personality.config import ExtractionConfig, TraitPositions
from diffing.personality.probes import PROBES, ProbeData, held_out_score, sweep_layers
from diffing.personality.reliability import direction_noise, split_half
from diffing.personality.trait_means import QuestionMeans

# A trait with fewer questions has no direction: two halves need two each, and every part of a layer sweep two.
FEWEST_QUESTIONS = 8
# Shares of the questions: probes fitted, layer chosen, and reported on the other half.
SWEEP = (0.25, 0.25, 0.5)

Layers = Mapping[tuple[TraitPositions, str], QuestionMeans]


def held_out_tables(found: Mapping[str, Layers], config: ExtractionConfig, seed: int) -> dict[str, pd.DataFrame]:
    """Reliability, probes and layer sweep of every trait, positions and hook."""
    rows: dict[str, list[dict[str, Any]]] = {"reliability": [], "probes": [], "layers": []}
    for trait, layers in found.items():
        for (at, hook), means in layers.items():
            if means.questions < FEWEST_QUESTIONS:
                continue
            where = {"trait": trait, "positions": at, "hook": hook}
            half, noise = split_half(means.differences, config.splits, seed), direction_noise(means.differences)
            rows["reliability"].append({**where, **vars(half), "norm": noise.norm, "truth_cosine": noise.truth_cosine})
            data = ProbeData.from_pairs(means.positive, means.negative)
            for probe, fit in PROBES.items():
                rows["probes"].append({**where, "probe": probe, **held_out_score(data, fit, seed=seed)[1].to_row()})
            swept = sweep_layers({hook: data}, shares=SWEEP, seed=seed)
            chosen = swept.selection[hook]
            selection = {"selection_auc": chosen.auc, "selection_separation": chosen.separation}
            rows["layers"].append({**where, **selection, **swept.score.to_row()})
    if not rows["layers"]:
        raise UserError(
            f"No trait has {FEWEST_QUESTIONS} questions with both poles at the chosen positions; sample more answers, "
            "or take prompt positions."
        )
    return {name: pd.DataFrame(found_rows) for name, found_rows in rows.items()}


def best_hooks(layers: pd.DataFrame) -> dict[str, str]:
    """Positions -> the hook that separates the traits best on the selection questions, on average over traits."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in layers.to_dict("records"):
        found.setdefault(row["positions"], {}).setdefault(row["hook"], []).append(row["selection_separation"])
    return {at: max(hooks, key=lambda hook: float(np.mean(hooks[hook]))) for at, hooks in found.items()}
