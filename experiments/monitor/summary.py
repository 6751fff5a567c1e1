"""What the monitor found, in a few numbers, and its tables in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from diffing.personality.valence import SVV
from experiments.monitor.screening_scores import BEST_TRAIT, LOSS, RANDOM
from experiments.names import EVIL

SCREENINGS = ("screening", "screening_sae_hook")
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


def print_monitor(summary: Mapping[str, Any], console: Console) -> None:
    """One table a question."""
    console.print(_correlations(summary["before"], "Before the answer", ("model", "direction", "pole")))
    if summary["shifts"]:
        title = f"Shifts of {summary['fine_tunes']} fine-tunes against their change"
        console.print(_correlations(summary["shifts"], title, ("positions",)))
    else:
        console.print("no set of models: shifts are not compared", soft_wrap=True)
    if summary["screening"]:
        console.print(_screened([row for table in SCREENINGS for row in summary[table]]))
    else:
        console.print("nothing to screen, or no directions of answers", soft_wrap=True)


def _correlations(rows: Sequence[Mapping[str, Any]], title: str, keys: Sequence[str]) -> Table:
    columns = ("mean r", "range", f"{EVIL} [95%]", "random |r|: mean, 95%", "traits above")
    shown = Table(*keys, *columns, title=title)
    for row in rows:
        if not row["traits"]:
            shown.add_row(*(row[key] for key in keys), "scores do not vary")
            continue
        evil = row["traits"].get(EVIL)
        shown.add_row(
            *(row[key] for key in keys),
            f"{row['mean_r']:.3f}",
            f"{row['lowest_r']:.3f} to {row['highest_r']:.3f}",
            f"{evil['r']:.3f} [{evil['low']:.3f}, {evil['high']:.3f}]" if evil else "",
            f"{row['random_mean']:.3f}, {row['random_high']:.3f}",
            f"{row['above_random']} of {len(row['traits'])}",
        )
    return shown


def _screened(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a mixture and hook. Answers alone, and recalls of all scores, are in the files."""
    by_place: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_place.setdefault((row["mixture"], row["hook"]), {})[row["score"]] = row
    shares = [name for name in rows[0] if name.startswith("recall_") and not name.endswith(("_low", "_high"))]
    looked = "/".join(f"{float(name.removeprefix('recall_')):.0%}" for name in shares)
    columns = ("data", "hook", "bad", *_SHOWN, f"{EVIL}: found in first {looked}")
    shown = Table(*columns, title="Screening: AUC (95%); of random directions 95% of all")
    for (mixture, hook), scores in by_place.items():
        some = next(iter(scores.values()))
        recalls = "/".join(f"{scores[EVIL][name]:.0%}" for name in shares) if EVIL in scores else ""
        cells = (_auc(scores[name]) if name in scores else "" for name in _SHOWN)
        shown.add_row(mixture, hook, f"{some['bad']} of {some['samples']}", *cells, recalls)
    return shown


def _auc(row: Mapping[str, Any]) -> str:
    low, high = (row.get(f"score_{end}", row[end]) for end in ("low", "high"))
    name = f"{row['trait']} " if "trait" in row else ""
    return f"{name}{row['auc']:.3f} [{low:.3f}, {high:.3f}]"
