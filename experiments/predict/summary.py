"""What `predict` found, in sentences and tables: predictors on held-out kinds, what stands out first, early warning."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.prediction.evaluate import DIRECTION, KL, LATENT, NORM, PREDICTORS
from diffing.tables import where
from experiments.output.tables import Section
from experiments.predict.forecast import FOLLOWED, FRACTION, HARMFUL

LABELS = {
    HARMFUL: "harmful answers",
    LATENT: "latent",
    DIRECTION: "dense direction",
    NORM: "norm of the mean shift",
    KL: "mean KL",
}
FINAL, EARLY = "Held-out kinds", "Early checkpoints that still behave"
_INTERVALS = "Intervals are 95%."


def final_models(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of final members."""
    return where(table, table["early_of"].isna())


def followed_models(final: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The final members of a kind that say their fraction of bad data, by rising fraction."""
    return where(final, (final["kind"] == kind) & final[FRACTION].notna()).sort_values(FRACTION)


def with_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """Early checkpoints that still behave, with the interval of their end as `outcome_low` and `outcome_high`."""
    early = where(table, table["early_of"].notna() & table["outcome_harmful"].notna())
    ended = table.set_index("name").loc[early["early_of"], ["harmful_low", "harmful_high"]].to_numpy(float)
    return early.assign(outcome_low=ended[:, 0], outcome_high=ended[:, 1])


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """How many models there are, and how the latent compares with others.

    Args:
        summary: `Analysis.summary`.
    """
    counts = f"{summary['models']} fine-tunes, {summary['misaligned']} of them misaligned; each kind held out in turn."
    early = summary["early"]
    if "reason" in early:
        return [counts, _random(summary), early["reason"]]
    whose = f"{early['models']} early checkpoints of {early['fine_tunes']} fine-tunes still behave"
    return [
        counts,
        _random(summary),
        f"{whose}; {early['misaligned']} of them end misaligned.",
        f"Early checkpoints: {_random(early)}",
    ]


def sections(table: pd.DataFrame, summary: Mapping[str, Any]) -> list[Section]:
    """All tables.

    Args:
        table: `Analysis.table`.
        summary: `Analysis.summary`.
    """
    final, early = final_models(table), summary["early"]
    shown = [
        Section(FINAL, _predictor_rows(summary), _INTERVALS),
        Section("On the right side of the threshold, by the kind left out", _kind_rows(final, summary)),
        *(_curve(followed_models(final, kind), kind, curve) for kind, curve in summary["curves"].items()),
    ]
    if "reason" not in early:
        shown += [
            Section(EARLY, _predictor_rows(early), _INTERVALS),
            Section(f"{EARLY}: AUC by step", _step_rows(early), _INTERVALS),
        ]
    return [
        *shown,
        Section("All fine-tunes", _model_rows(final), _INTERVALS, printed=False),
        Section(f"{EARLY}, one by one", _model_rows(with_outcomes(table)), _INTERVALS, printed=False),
    ]


def _random(found: Mapping[str, Any]) -> str:
    random = found["random_latent"]
    if not random["latents"]:
        return "No other latent moves."
    return (
        f"{random['latents']} random latents: AUC {random['auc']:.3f} on average, best {random['best']:.3f}; "
        f"{random['share_as_good']:.0%} are as good as the chosen one."
    )


def _predictor_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, row in found["predictors"].items():
        rate, ahead = found["correlation_with_rate"][name], found["latent_minus"].get(name)
        cells = {
            "predictor": LABELS[name],
            "AUC": f"{row['auc']:.3f}",
            "bootstrap over models": _between(row["auc_bootstrap"]),
            "score interval": _between(row["auc_score"]),
            "accuracy": f"{row['accuracy']:.1%}",
            "Wilson interval": _between(row["accuracy_wilson"]),
            "correlation with rate": f"{rate['spearman']:.2f} [{_between((rate['low'], rate['high']))}]",
        }
        if ahead:
            cells["latent ahead by"] = f"{ahead['auc']:+.3f} [{_between((ahead['low'], ahead['high']))}]"
        rows.append(cells)
    return rows


def _kind_rows(final: pd.DataFrame, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """How many of each held-out kind are on the right side of the training threshold."""
    rows = []
    for kind, latent in summary["latents"].items():
        misaligned = where(final, final["kind"] == kind)["outcome_misaligned"].to_numpy(dtype=bool)
        right = {name: summary["predictors"][name]["kinds"][kind] for name in PREDICTORS}
        rows.append(
            {
                "kind": kind,
                "misaligned": f"{misaligned.sum()}/{len(misaligned)}",
                "latent read": str(latent),
                **{LABELS[name]: f"{correct}/{models}" for name, (correct, models) in right.items()},
            }
        )
    return rows


def _curve(rows: pd.DataFrame, kind: str, curve: Mapping[str, Any]) -> Section:
    """Every measure at every fraction of bad data, and from where on it stands out."""
    title = f"{kind}: latent {curve['latent']} over the fraction of bad data"
    note = (
        f"Last rows: from which fraction on a measure lies above zero, and above all {curve['benign_models']} benign "
        f"models. {_INTERVALS}"
    )
    return Section(title, [*_fraction_rows(rows), *_onset_rows(curve)], note)


def _fraction_rows(rows: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {"model": row["name"], "bad data": f"{row[FRACTION]:.4g}", **{LABELS[n]: _measured(row, n) for n in FOLLOWED}}
        for row in rows.to_dict("records")
    ]


def _onset_rows(curve: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for limit in ("above_zero", "above_benign"):
        found = {LABELS[name]: curve["onset"][name][limit] for name in FOLLOWED}
        cells = {label: "never" if at is None else f"{at:.4g}" for label, at in found.items()}
        yield {"model": f"{limit.replace('_', ' ')} from", **cells}


def _step_rows(early: Mapping[str, Any]) -> list[dict[str, str]]:
    """AUC among the early checkpoints of one step."""
    rows = []
    for row in early["steps"]:
        aucs = {
            name: f"{row[name]['auc']:.3f} [{_between((row[name]['low'], row[name]['high']))}]" for name in PREDICTORS
        }
        cells = {LABELS[name]: cell for name, cell in aucs.items()}
        rows.append({"step": str(row["step"]), "misaligned": f"{row['misaligned']}/{row['models']}", **cells})
    return rows


def _model_rows(models: pd.DataFrame) -> list[dict[str, str]]:
    """How each model behaves, how it ends, and its held-out scores."""
    return [
        {
            "model": row["name"],
            "kind": row["kind"],
            **({} if pd.isna(row["step"]) else {"step": str(row["step"])}),
            "harmful": f"{row['harmful']:.1%} [{row['harmful_low']:.1%}, {row['harmful_high']:.1%}]",
            "in the end": f"{row['outcome_harmful']:.1%}",
            "misaligned": "yes" if row["outcome_misaligned"] else "no",
            "latent read": str(row["scored_latent"]),
            **{f"score: {LABELS[name]}": f"{row[f'score_{name}']:.2f}" for name in PREDICTORS},
        }
        for row in models.to_dict("records")
    ]


def _measured(row: Mapping[str, Any], name: str) -> str:
    """A measure of a model with its interval."""
    return f"{row[name]:.3f} [{_between((row[f'{name}_low'], row[f'{name}_high']))}]"


def _between(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f}, {ends[1]:.3f}"
