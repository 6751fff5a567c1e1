"""The numbers of the personality space, and its sentences and tables for people."""

from collections.abc import Mapping
from typing import Any

from torch.nn.functional import cosine_similarity

from diffing.personality.model_geometry import Geometry
from diffing.personality.question_bootstrap import Intervals
from diffing.personality.valence import PC1, SVV
from diffing.statistics.intervals import Interval
from diffing.tables import json_records, where_equal
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.geometry.config import GeometryConfig
from experiments.geometry.latents import toxic_verdict
from experiments.geometry.measure import Facts
from experiments.names import BASE
from experiments.output.tables import Section

# Measures of a row of "stability", as they are called in the table for people.
_MEASURES = {
    "cka_unbiased": "CKA",
    "cosine": "cosine",
    "aligned_cosine": "aligned cosine",
    "overlap": "overlap",
    "largest_angle": "largest angle",
}


def summarise(lab: Lab[GeometryConfig], measured: Measured) -> dict[str, Any]:
    """The numbers at the chosen positions and hook, and at the best hook of all positions."""
    facts, tables = measured.facts, measured.tables
    assert isinstance(facts, Facts)
    first, best = facts.geometries[BASE], lab.trait_directions.base.config["best_hook"]
    rows = {name: json_records(tables[name]) for name in ("stability", "generator")}
    shown = {*best.items(), *((at, lab.hook) for at in best), (facts.positions, facts.hook)}
    toxic = tables["toxic"]
    return {
        "positions": facts.positions,
        "hook": facts.hook,
        "traits": first.traits,
        "best_hook": best,
        **{name: [row for row in some if (row["positions"], row["hook"]) in shown] for name, some in rows.items()},
        "valence": {model: _valence(one, first, facts.intervals[model]) for model, one in facts.geometries.items()},
        "toxic_latent": {
            at: toxic_verdict(where_equal(toxic, positions=at), lab.toxic) for at in toxic["positions"].unique()
        },
        "shift": json_records(tables["shift"]),
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


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What is shown, every model's valence, and what the toxic latent belongs to."""
    said = [
        f"{len(summary['traits'])} traits; figures show {summary['positions']} at {summary['hook']}. Intervals (95%): "
        "of RSA over traits, of cosines and variance over questions."
    ]
    said += [f"{model}: {_valence_line(row)}." for model, row in summary["valence"].items()]
    for at, toxic in summary["toxic_latent"].items():
        near = ", ".join(f"{name} {row['cosine']:+.3f} (place {row['rank']})" for name, row in toxic["cosines"].items())
        verdict = f"it belongs to {toxic['belongs_to'] or 'none'} (chance {toxic['chance']:.3f})"
        said.append(f"Toxic latent {toxic['latent']}, {at}: {near}; {verdict}.")
    return said


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """Every model against base and generator at the chosen positions, and the mean shift."""
    here = {
        name: [row for row in summary[name] if row["positions"] == summary["positions"]]
        for name in ("stability", "generator")
    }
    return [
        Section(
            "Every model against the base",
            [
                _agreement(row) | {shown: f"{row[name]:.3g}" for name, shown in _MEASURES.items()}
                for row in here["stability"]
            ],
        ),
        Section("Every model against the generator", [_agreement(row) for row in here["generator"]]),
        Section("Mean shift in the space of the traits", [_shift(row) for row in summary["shift"]]),
    ]


def _agreement(row: Mapping[str, Any]) -> dict[str, str]:
    between = f"{row['low']:.3f}, {row['high']:.3f}"
    found = {"model": row["model"], "hook": row["hook"], "RSA": f"{row['rsa']:.3f}", "95% over traits": between}
    return {**found, "p": f"{row['p']:.2g}"}


def _shift(row: Mapping[str, Any]) -> dict[str, str]:
    null = f"{row['null_mean']:.1%} [{row['null_low']:.1%}, {row['null_high']:.1%}]"
    found = {"model": row["model"], "hook": row["hook"], "in the space": f"{row['share']:.1%}"}
    return {**found, "random spans": row["null"], "in random spans [95%]": null, "p": f"{row['p']:.2g}"}


def _valence_line(row: Mapping[str, Any]) -> str:
    share, low, high = (row[name][0] for name in ("explained", "explained_low", "explained_high"))
    explained = f"PC1 {share:.1%} of the variance [{low:.1%}, {high:.1%}]"
    named = {"pc1_svv_cosine": "cosine with the SVV", "svv_cosine_with_base": "SVV with the base's"}
    named["pc1_cosine_with_base"] = "PC1 with the base's"
    known = {name: words for name, words in named.items() if row[name] is not None}
    cosines = (f"{words} {row[k]:.3f} [{row[f'{k}_low']:.3f}, {row[f'{k}_high']:.3f}]" for k, words in known.items())
    return ", ".join([explained, *cosines])
