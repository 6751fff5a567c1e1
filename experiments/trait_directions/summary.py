"""The numbers that the page of `extract` starts with, and a short form for the terminal."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from diffing.behavior.trait_judge import TraitJudge
from diffing.personality.model_space import ModelSpace
from diffing.personality.probes import PROBES
from diffing.tables import where
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
    ends: Counter[str] = Counter()
    for counts in space.config["kept"].values():
        ends.update(counts)
    return {"positions": found, "kept": kept, "pairs": sampled, "ends": dict(ends)}


def print_extract(summary: Mapping[str, Any], console: Console) -> None:
    """The best layer of every model at every positions, who judged, and how many pairs of answers met which end."""
    table = Table("model", "positions", "best hook", "traits", "held-out AUC (lowest)", "reliability (lowest)")
    for name, model in summary["models"].items():
        for at, row in model["positions"].items():
            auc, full = (f"{row[k]:.3f} ({row[f'lowest_{k}']:.3f})" for k in ("auc", "reliability"))
            table.add_row(name, at, row["hook"], str(row["traits"]), auc, full)
    console.print(table)
    judge = summary["judge"]
    console.print(f"judge: {judge}" if judge else "no judge of traits: answers are not filtered", soft_wrap=True)
    for name, model in summary["models"].items():
        if model["kept"]:
            least = min(model["kept"], key=lambda trait: model["kept"][trait])
            shares = f"{sum(model['kept'].values())} of {sum(model['pairs'].values())} pairs of answers kept"
            lost = ", ".join(
                f"{number} {end.replace('_', ' ')}" for end, number in model["ends"].items() if end != "kept"
            )
            console.print(f"{name}: {shares}, fewest for {least} ({model['kept'][least]}); {lost}", soft_wrap=True)


def _rows(table: pd.DataFrame, positions: str, hook: str) -> list[dict[Hashable, Any]]:
    return where(table, (table["positions"] == positions) & (table["hook"] == hook)).to_dict("records")
