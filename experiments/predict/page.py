"""The page of a prediction: numbers, figures, which are saved beside it, and every model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diffing.prediction.evaluate import PREDICTORS
from diffing.tables import where
from experiments.output import figures as paper
from experiments.predict import drawing
from experiments.predict.forecast import FOLLOWED, FRACTION
from experiments.predict.summary import LABELS, measured

_FINAL, _EARLY = "Held-out kinds", "Early checkpoints that still behave"


def write_page(path: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: HTML file, replaced if it exists.
        table: `Analysis.table`.
        summary: `Analysis.summary`.
    """
    final = where(table, table["early_of"].isna())
    early = with_outcomes(table)
    groups = {_FINAL: final} | ({_EARLY: early} if len(early) else {})
    forecasts = {_FINAL: summary} | ({_EARLY: summary["early"]} if len(early) else {})
    followed = {kind: where(final, (final["kind"] == kind) & final[FRACTION].notna()) for kind in summary["curves"]}
    with paper.style():
        figures = [drawing.predictor_dots(forecasts), drawing.scores_by_kind(final), drawing.roc_curves(groups)]
        for number, (kind, rows) in enumerate(followed.items(), start=1):
            figures.append(drawing.over_fractions(rows, kind, summary["curves"][kind], number))
        figures += [drawing.early_scores(early)] if len(early) else []
    parts: list[paper.PaperFigure | str] = [*_numbers(summary), *figures]
    for title, rows in (
        ("All fine-tunes", _model_rows(final)),
        (
            "Over the fraction of bad data [95%]",
            [row for models in followed.values() for row in _fraction_rows(models)],
        ),
        (_EARLY, _model_rows(early)),
    ):
        parts += [f"<h2>{title}</h2>", paper.table(pd.DataFrame(rows))] if rows else []
    paper.write_page(path, "Held-out kinds of fine-tunes", parts)


def with_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """Early checkpoints that still behave, with the interval of what they became as `outcome_low` and `_high`."""
    early = where(table, table["early_of"].notna() & table["outcome_harmful"].notna())
    became = table.set_index("name").loc[early["early_of"], ["harmful_low", "harmful_high"]].to_numpy(float)
    return early.assign(outcome_low=became[:, 0], outcome_high=became[:, 1])


def _numbers(summary: Mapping[str, Any]) -> list[str]:
    """The predictors on held-out kinds, as a table."""
    rows = {
        LABELS[name]: {
            "AUC": f"{row['auc']:.3f}",
            "bootstrap over models": _between(row["auc_bootstrap"]),
            "score interval": _between(row["auc_score"]),
            "accuracy": f"{row['accuracy']:.1%}",
            "Wilson interval": _between(row["accuracy_wilson"]),
        }
        for name, row in summary["predictors"].items()
    }
    counts = f"{summary['models']} fine-tunes, {summary['misaligned']} of them misaligned"
    return [
        f"<p>{counts}; intervals are 95%.</p>",
        paper.table(pd.DataFrame.from_dict(rows, orient="index"), index=True),
    ]


def _between(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _model_rows(models: pd.DataFrame) -> list[dict[str, str]]:
    """What each model does, what becomes of it, and its held-out scores."""
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


def _fraction_rows(rows: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "model": row["name"],
            "kind": row["kind"],
            "bad data": f"{row[FRACTION]:.4g}",
            "latent read": str(row["latent_index"]),
            **{LABELS[name]: measured(row, name) for name in FOLLOWED},
        }
        for row in rows.sort_values(FRACTION).to_dict("records")
    ]
