"""What the monitor found, in a few numbers, and its sentences and tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diffing.personality.valence import SVV
from experiments.monitor.screening_scores import BEST_TRAIT, LOSS, RANDOM, SCREENINGS
from experiments.names import EVIL
from experiments.output.tables import Section

_SHOWN = (EVIL, SVV, BEST_TRAIT, LOSS, RANDOM)


def summarise(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean and range over traits of the correlations, those of every trait, and the tables of the screening."""
    found: dict[str, Any] = {"before": [], "shifts": []}
    keys = {"before": ["model", "direction", "pole"], "shifts": ["positions"]}
    for table, by in keys.items():
        grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in _records(tables[table]) if table in tables else []:
            grouped.setdefault(tuple(row[key] for key in by), []).append(row)
        found[table] = [{**dict(zip(by, place, strict=True)), **_over_traits(g)} for place, g in grouped.items()]
    if "members" in tables:
        found["fine_tunes"] = len({row["model"] for row in _records(tables["members"])})
    for table in SCREENINGS:
        rows = _records(tables[table]) if table in tables else []
        found[table] = [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]
    return found


def _over_traits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Traits whose score does not vary have no r and are only counted."""
    columns = ("r", "low", "high", "random_mean", "random_high", "p", "cases")
    traits = {row["trait"]: {name: row[name] for name in columns} for row in rows if not np.isnan(row["r"])}
    if not traits:
        return {"traits": {}, "without_r": len(rows)}
    known = list(traits.values())
    correlations = [row["r"] for row in known]
    return {
        "mean_r": float(np.mean(correlations)),
        "lowest_r": min(correlations),
        "highest_r": max(correlations),
        "random_mean": float(np.mean([row["random_mean"] for row in known])),
        "random_high": float(np.mean([row["random_high"] for row in known])),
        "above_random": sum(row["r"] > row["random_high"] for row in known),
        "traits": traits,
        "without_r": len(rows) - len(known),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What was left out, and what the intervals are."""
    said = ["Intervals are 95%."]
    if not summary["shifts"]:
        said.append("No fine-tunes were given, so shifts are not compared.")
    if not summary["screening"]:
        said.append("There was nothing to screen, or there are no directions of answers.")
    return said


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """A table a question."""
    shifts = f"Shifts of {summary.get('fine_tunes')} fine-tunes against their change"
    screened = [row for table in SCREENINGS for row in summary[table]]
    return [
        Section("Before the answer", _correlations(summary["before"], ("model", "direction", "pole"))),
        Section(shifts, _correlations(summary["shifts"], ("positions",))),
        Section("Screening: AUC [95%]; of random directions 95% of all", _screened(screened)),
    ]


def _correlations(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, str]]:
    shown = []
    for row in rows:
        cells = {key: row[key] for key in keys}
        if not row["traits"]:
            shown.append(cells | {"mean r": "scores do not vary"})
            continue
        evil = row["traits"].get(EVIL)
        cells |= {
            "mean r": f"{row['mean_r']:.3f}",
            "range": f"{row['lowest_r']:.3f} to {row['highest_r']:.3f}",
            f"{EVIL} [95%]": f"{evil['r']:.3f} [{evil['low']:.3f}, {evil['high']:.3f}]" if evil else "",
            "random |r|: mean, 95%": f"{row['random_mean']:.3f}, {row['random_high']:.3f}",
            "traits above": f"{row['above_random']} of {len(row['traits'])}",
        }
        shown.append(cells)
    return shown


def _screened(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row a mixture and hook. Answers alone, and recalls of all scores, are in the files."""
    by_place: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_place.setdefault((row["mixture"], row["hook"]), {})[row["score"]] = row
    first = rows[0] if rows else {}
    shares = [name for name in first if name.startswith("recall_") and not name.endswith(("_low", "_high"))]
    looked = "/".join(f"{float(name.removeprefix('recall_')):.0%}" for name in shares)
    shown = []
    for (mixture, hook), scores in by_place.items():
        some = next(iter(scores.values()))
        cells = {"data": mixture, "hook": hook, "bad": f"{some['bad']} of {some['samples']}"}
        cells |= {name: _auc(scores[name]) if name in scores else "" for name in _SHOWN}
        recalls = "/".join(f"{scores[EVIL][name]:.0%}" for name in shares) if EVIL in scores else ""
        shown.append(cells | {f"{EVIL}: found in first {looked}": recalls})
    return shown


def _auc(row: Mapping[str, Any]) -> str:
    low, high = (row.get(f"score_{end}", row[end]) for end in ("low", "high"))
    name = f"{row['trait']} " if "trait" in row else ""
    return f"{name}{row['auc']:.3f} [{low:.3f}, {high:.3f}]"
