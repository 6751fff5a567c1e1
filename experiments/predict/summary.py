"""What `predict` prints: the predictors on held-out kinds, what becomes visible first, and the early warning."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from diffing.prediction.evaluate import DIRECTION, KL, LATENT, NORM, PREDICTORS
from diffing.tables import where
from experiments.predict.forecast import FOLLOWED, FRACTION, HARMFUL

LABELS = {
    HARMFUL: "harmful answers",
    LATENT: "latent",
    DIRECTION: "dense direction",
    NORM: "norm of the mean shift",
    KL: "mean KL",
}


def print_prediction(table: pd.DataFrame, summary: Mapping[str, Any], console: Console) -> None:
    """The predictors on held-out kinds, what becomes visible first, and the early warning."""
    console.print(f"{summary['models']} fine-tunes, {summary['misaligned']} misaligned; each kind held out in turn")
    console.print(_predictors(summary))
    console.print(_random(summary))
    console.print(_kinds(table, summary))
    for kind, curve in summary["curves"].items():
        console.print(_curve(where(table, (table["kind"] == kind) & table["early_of"].isna()), kind, curve))
    early = summary["early"]
    if "reason" in early:
        console.print(early["reason"], soft_wrap=True)
        return
    whose = f"{early['models']} early checkpoints of {early['fine_tunes']} fine-tunes"
    console.print(f"{whose} still behave; {early['misaligned']} end misaligned")
    console.print(_predictors(early))
    console.print(_random(early))
    console.print(_steps(early))


def _predictors(found: Mapping[str, Any]) -> Table:
    columns = ("AUC", "bootstrap 95%", "score 95%", "accuracy", "Wilson 95%", "correlation with rate")
    table = Table("", *columns, "latent ahead by")
    for name, row in found["predictors"].items():
        rate = found["correlation_with_rate"][name]
        ahead = found["latent_minus"].get(name)
        table.add_row(
            LABELS[name],
            f"{row['auc']:.3f}",
            _between(row["auc_bootstrap"]),
            _between(row["auc_score"]),
            f"{row['accuracy']:.1%}",
            _between(row["accuracy_wilson"]),
            f"{rate['spearman']:.2f} [{_between((rate['low'], rate['high']))}]",
            f"{ahead['auc']:+.3f} [{_between((ahead['low'], ahead['high']))}]" if ahead else "",
        )
    return table


def _random(found: Mapping[str, Any]) -> str:
    random = found["random_latent"]
    if not random["latents"]:
        return "no other latent moves"
    return (
        f"{random['latents']} random latents: AUC {random['auc']:.3f} on average, best {random['best']:.3f}; "
        f"{random['share_as_good']:.0%} are as good as the chosen one"
    )


def _kinds(table: pd.DataFrame, summary: Mapping[str, Any]) -> Table:
    """How many of each held-out kind are on the right side of the training threshold."""
    shown = Table("right in the kind left out", "misaligned", "latent", *(LABELS[name] for name in PREDICTORS))
    final = where(table, table["early_of"].isna())
    for kind, latent in summary["latents"].items():
        misaligned = where(final, final["kind"] == kind)["outcome_misaligned"].to_numpy(dtype=bool)
        right = (summary["predictors"][name]["kinds"][kind] for name in PREDICTORS)
        counts = (f"{correct}/{models}" for correct, models in right)
        shown.add_row(kind, f"{misaligned.sum()}/{len(misaligned)}", str(latent), *counts)
    return shown


def _curve(rows: pd.DataFrame, kind: str, curve: Mapping[str, Any]) -> Table:
    """Every measure at every fraction of bad data, and from where on it stands out."""
    title = f"{kind}: latent {curve['latent']}, against {curve['benign_models']} benign models"
    shown = Table("bad data", *(LABELS[name] for name in FOLLOWED), title=title)
    for row in rows.sort_values(FRACTION).to_dict("records"):
        shown.add_row(f"{row[FRACTION]:.3g}", *(measured(row, name) for name in FOLLOWED))
    for limit in ("above_zero", "above_benign"):
        found = [curve["onset"][name][limit] for name in FOLLOWED]
        shown.add_row(f"{limit.replace('_', ' ')} from", *("never" if at is None else f"{at:.3g}" for at in found))
    return shown


def _steps(early: Mapping[str, Any]) -> Table:
    """AUC among the early checkpoints of one step."""
    shown = Table("AUC at step", "misaligned", *(LABELS[name] for name in PREDICTORS))
    for row in early["steps"]:
        aucs = (f"{row[name]['auc']:.3f} [{_between((row[name]['low'], row[name]['high']))}]" for name in PREDICTORS)
        shown.add_row(str(row["step"]), f"{row['misaligned']}/{row['models']}", *aucs)
    return shown


def measured(row: Mapping[str, Any], name: str) -> str:
    """A measure of a model with its interval."""
    return f"{row[name]:.3f} [{_between((row[f'{name}_low'], row[f'{name}_high']))}]"


def _between(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f}, {ends[1]:.3f}"
