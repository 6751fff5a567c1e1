"""The numbers of `trait-directions`, and its sentences and tables for people."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diffing.behavior.trait_judge import TraitJudge
from diffing.personality.model_space import ModelSpace
from diffing.personality.probes import PROBES
from diffing.tables import records, where
from diffing.traits.prompts import TraitPrompts


def summarise(spaces: Sequence[ModelSpace], traits: Sequence[TraitPrompts], judge: TraitJudge | None) -> dict[str, Any]:
    """By model: the best layer at every positions with its reported AUC and reliability, and the pairs kept."""
    return {
        "traits": len(traits),
        "valence": {trait.name: trait.valence for trait in traits},
        "judge": getattr(judge, "name", None),
        "models": {space.name: _model_summary(space) for space in spaces},
    }


def _model_summary(space: ModelSpace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for at, hook in space.config["best_hook"].items():
        layers, halves, probes = (_rows(space.tables[name], at, hook) for name in ("layers", "reliability", "probes"))
        aucs, reliable = [row["auc"] for row in layers], [row["full"] for row in halves]
        found[at] = {
            "hook": hook,
            "traits": len(layers),
            "auc": float(np.mean(aucs)),
            "lowest_auc": min(aucs),
            "separation": float(np.mean([row["separation"] for row in layers])),
            "reliability": float(np.mean(reliable)),
            "lowest_reliability": min(reliable),
            "probe_auc": {
                probe: float(np.mean([row["auc"] for row in probes if row["probe"] == probe])) for probe in PROBES
            },
        }
    kept = {trait: counts["kept"] for trait, counts in space.config["kept"].items()}
    sampled = {trait: sum(counts.values()) for trait, counts in space.config["kept"].items()}
    outcomes: Counter[str] = Counter()
    for counts in space.config["kept"].values():
        outcomes.update(counts)
    return {"positions": found, "kept": kept, "pairs": sampled, "ends": dict(outcomes)}


def best_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The best layer of every model at every positions."""
    rows = []
    for name, model in summary["models"].items():
        for at, found in model["positions"].items():
            auc, full = (f"{found[key]:.3f} ({found[f'lowest_{key}']:.3f})" for key in ("auc", "reliability"))
            row = {"model": name, "positions": at, "best hook": found["hook"], "traits": str(found["traits"])}
            rows.append({**row, "held-out AUC (lowest)": auc, "reliability (lowest)": full})
    return rows


def pair_rows(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """How many pairs of answers of each model and trait had which outcome."""
    rows = []
    for row in records(pairs):
        counts = {name.replace("_", " "): value for name, value in row.items() if name not in ("model", "trait")}
        shown = {outcome: f"{count:g}" for outcome, count in counts.items() if not pd.isna(count)}
        rows.append({"model": row["model"], "trait": row["trait"], **shown})
    return rows


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Who judged, and how many pairs of answers had which outcome."""
    judge = summary["judge"]
    said = [f"Judge: {judge}." if judge else "Nobody judged the answers, so none was filtered out."]
    for name, model in summary["models"].items():
        if model["kept"]:
            least = min(model["kept"], key=lambda trait: model["kept"][trait])
            shares = f"{sum(model['kept'].values())} of {sum(model['pairs'].values())} pairs of answers kept"
            lost = ", ".join(
                f"{n} {outcome.replace('_', ' ')}" for outcome, n in model["ends"].items() if outcome != "kept"
            )
            said.append(f"{name}: {shares}, fewest for {least} ({model['kept'][least]}); {lost}.")
    return said


def _rows(table: pd.DataFrame, positions: str, hook: str) -> list[dict[Hashable, Any]]:
    return where(table, (table["positions"] == positions) & (table["hook"] == hook)).to_dict("records")
