"""The tables of `guardrails` for terminal and page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diffing.personality.valence import SVV
from diffing.tables import where
from experiments.guardrails.summary import between
from experiments.guardrails.vectors import CONTROLS
from experiments.output.tables import Row, Section, percent


def sections(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[Section]:
    """What each arm does in corrupted model, base and fine-tunes, and what ablation does."""
    return [
        Section("Each arm in all misaligned fine-tunes", arm_rows(summary)),
        Section("Random directions at the SVV's treatment, mean of each kind", _control_rows(summary)),
        Section("Amplified and capped, sparing the base", _sparing_rows(summary)),
        Section("The SVV ablated, as chosen on the selection questions", _ablation_rows(summary)),
        Section("Each arm ablated at all layers", _arm_ablation_rows(summary), printed=False),
        Section("Fine-tunes", _fine_tune_rows(tables["fine_tunes"]), printed=False),
    ]


def arm_rows(summary: Mapping[str, Any]) -> list[Row]:
    """Every arm at its chosen treatment and, of each kind of random directions, the one that repairs most."""
    found = summary["fine_tunes"]
    best = {row["best"]["name"]: row["best"] for row in found["controls"].values()}
    return [
        {
            "arm": name,
            "cosine with SVV": f"{row['cosine_svv']:.2f}",
            "treatment": f"{row['operation']} {row['strength']:g}",
            **_in_the_run(summary, name),
            "fine-tunes: harmful": between(row),
            "most harmful": percent(row["highest_harmful"]),
            "fine-tunes: helpful": percent(row["helpful"]),
            "incoherent": percent(row["incoherent"]),
            "reach the target": f"{len(row['reached'])} of {found['models']}",
        }
        for name, row in (found["arms"] | best).items()
    ]


def _in_the_run(summary: Mapping[str, Any], name: str) -> Row:
    """Rates of the run's own models; the summary has none of a single random direction."""
    repair, cost = (summary[part]["arms"].get(name) for part in ("repair", "cost"))
    return {
        "corrupted: harmful": between(repair) if repair else "",
        "corrupted: helpful": percent(repair["helpful"]) if repair else "",
        "base: helpful": percent(cost["helpful"]) if cost else "",
    }


def _control_rows(summary: Mapping[str, Any]) -> list[Row]:
    return [
        {
            "kind": kind,
            "corrupted: harmful": percent(summary["repair"]["controls"][kind]["harmful"]),
            "fine-tunes: harmful": percent(row["mean"]["harmful"]),
            "fine-tunes: helpful": percent(row["mean"]["helpful"]),
        }
        for kind, row in summary["fine_tunes"]["controls"].items()
    ]


def _sparing_rows(summary: Mapping[str, Any]) -> list[Row]:
    """What each arm does at its sparing doses; of each kind of control the one that repairs the fine-tunes most."""
    random: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in summary["sparing"]:
        key = row["kind"], row["operation"]
        if row["kind"] in CONTROLS and _gain(row) > _gain(random.get(key)):
            random[key] = row
    shown = [*(row for row in summary["sparing"] if row["kind"] not in CONTROLS), *random.values()]
    return [
        {
            "arm": row["arm"],
            "dose": f"{row['operation']} {row['strength']:g}, {row['hook'].removesuffix('.hook_resid_post')}",
            "corrupted: harmful": between(row, "corrupted_"),
            "corrupted: helpful": percent(row["corrupted_helpful"]),
            "corrupted: capability": percent(row["corrupted_capability"]),
            "base: helpful": percent(row["base_helpful"]),
            "base: capability": percent(row["base_capability"]),
            "fine-tunes: harmful": percent(row["harmful"]),
            "fine-tunes: helpful": percent(row["helpful"]),
            "reach the target": f"{len(row['reached'])} of {row['models']}",
        }
        for row in shown
    ]


def _gain(row: Mapping[str, Any] | None) -> float:
    return -np.inf if row is None else row["helpful"] - row["harmful"]


def _ablation_rows(summary: Mapping[str, Any]) -> list[Row]:
    return [
        {
            "model": row["model"],
            "ablation": f"{row['operation']}, {row['reach']} {row['hook']}".rstrip(),
            "untouched: harmful": between(row, "untouched_"),
            "ablated: harmful": between(row),
            "helpful": percent(row["helpful"]),
            "incoherent": percent(row["incoherent"]),
            **{f"{kind}: most harmful": percent(found["most_harmful"]) for kind, found in row["controls"].items()},
        }
        for row in summary["ablation"]
    ]


def _arm_ablation_rows(summary: Mapping[str, Any]) -> list[Row]:
    return [
        {"arm": arm, **{f"{model}: harmful": between(row) for model, row in by_model.items()}}
        for arm, by_model in summary["ablation_of_arms"].items()
    ]


def _fine_tune_rows(fine_tunes: pd.DataFrame) -> list[Row]:
    return [
        {
            "fine-tune": row["model"],
            "kind": row["tune"],
            "untouched: harmful": between(row, "untouched_"),
            "SVV added: harmful": between(row),
            "helpful": percent(row["helpful"]),
            "incoherent": percent(row["incoherent"]),
        }
        for row in where(fine_tunes, fine_tunes["arm"] == SVV).to_dict("records")
    ]
