"""The numbers that the page of the personality space starts with, and a short form for the terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cosine_similarity

from diffing.personality.config import TraitPositions
from diffing.statistics.intervals import Interval
from experiments.geometry.latents import toxic_verdict
from experiments.geometry.model_geometry import Geometry
from experiments.geometry.question_bootstrap import Intervals
from experiments.geometry.spaces import Spaces, records, where_equal
from experiments.names import BASE, PC1, SVV


def summarise(
    spaces: Spaces,
    found: Mapping[str, Geometry],
    intervals: Mapping[str, Intervals],
    tables: Mapping[str, pd.DataFrame],
    where: tuple[TraitPositions, str],
) -> dict[str, Any]:
    """The numbers that the page starts with, at the headline's positions and hook."""
    at, hook = where
    first = found[BASE]
    rows = {name: records(tables[name]) for name in ("stability", "generator")}
    shown = {(reading, best) for reading, best in spaces.base.config["best_hook"].items()}
    shown |= {(reading, spaces.run.config.hook) for reading, _ in shown} | {where}
    return {
        "positions": at,
        "hook": hook,
        "traits": first.traits,
        "best_hook": spaces.base.config["best_hook"],
        **{name: [row for row in some if (row["positions"], row["hook"]) in shown] for name, some in rows.items()},
        "valence": {model: _valence(one, first, intervals[model]) for model, one in found.items()},
        "toxic_latent": {
            reading: toxic_verdict(where_equal(tables["toxic"], positions=reading), spaces)
            for reading in tables["toxic"]["positions"].unique()
        },
        "shift": records(tables["shift"]),
    }


def _valence(one: Geometry, base: Geometry, intervals: Intervals) -> dict[str, Any]:
    """PC1 and SVV of a model: how alike they are, and how like the base's; intervals are over resampled questions."""
    found: dict[str, Any] = {
        **_with_ends("pc1_svv_cosine", one.map.valence_cosine if one.svv else None, intervals.pc1_svv),
        "explained": one.map.explained[:3].tolist(),
        "explained_low": intervals.explained[0, :3].tolist(),
        "explained_high": intervals.explained[1, :3].tolist(),
    }
    for name, axis in (("svv", SVV), ("pc1", PC1)):
        both = [space.axes[axis].double() for space in (one, base) if axis in space.axes]
        cosine = float(cosine_similarity(*both, dim=0)) if len(both) == 2 else None
        found |= _with_ends(f"{name}_cosine_with_base", cosine, intervals.with_base.get(axis))
    return found


def _with_ends(name: str, value: float | None, ends: Interval | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def print_geometry(summary: Mapping[str, Any], console: Console) -> None:
    """The page's positions only: every model against base and generator, the toxic latent, and the mean shift."""
    at = summary["positions"]
    console.print(f"{len(summary['traits'])} traits, {at}; the page shows {summary['hook']}", soft_wrap=True)
    for title, kind in (("against the base", "stability"), ("against the generator", "generator")):
        rows = [row for row in summary[kind] if row["positions"] == at]
        table = Table(title, "hook", "RSA", "95% over traits", "p")
        for row in rows:
            between = f"{row['low']:.3f}, {row['high']:.3f}"
            table.add_row(row["model"], row["hook"], f"{row['rsa']:.3f}", between, f"{row['p']:.2g}")
        if rows:
            console.print(table)
    for model, row in summary["valence"].items():
        console.print(f"{model}: {_valence_line(row)}", soft_wrap=True)
    for reading, toxic in summary["toxic_latent"].items():
        near = ", ".join(f"{name} {row['cosine']:+.3f} (place {row['rank']})" for name, row in toxic["cosines"].items())
        verdict = f"belongs to {toxic['belongs_to'] or 'none'}; chance {toxic['chance']:.3f}"
        console.print(f"toxic latent {toxic['latent']}, {reading}: {near}: {verdict}", soft_wrap=True)
    table = Table("mean shift", "hook", "in the space", "random spans", "", "p")
    for row in summary["shift"]:
        null = f"{row['null_mean']:.1%} [{row['null_low']:.1%}, {row['null_high']:.1%}]"
        table.add_row(row["model"], row["hook"], f"{row['share']:.1%}", row["null"], null, f"{row['p']:.2g}")
    console.print(table)


def _valence_line(row: Mapping[str, Any]) -> str:
    share, low, high = (row[name][0] for name in ("explained", "explained_low", "explained_high"))
    explained = f"PC1 {share:.1%} of the variance [{low:.1%}, {high:.1%}]"
    named = {"pc1_svv_cosine": "cosine with the SVV", "svv_cosine_with_base": "SVV with the base's"}
    named["pc1_cosine_with_base"] = "PC1 with the base's"
    known = {name: words for name, words in named.items() if row[name] is not None}
    cosines = (f"{words} {row[k]:.3f} [{row[f'{k}_low']:.3f}, {row[f'{k}_high']:.3f}]" for k, words in known.items())
    return ", ".join([explained, *cosines])
