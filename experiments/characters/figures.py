"""The figures of `characters`: grid, learning, shared structure, and what the shared direction causes."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from diffing.tables import where
from experiments.characters.cast import CHARACTER, INCORRECT
from experiments.characters.causal import SHIFT
from experiments.characters.conditions import (
    NONE,
    OTHER_WORDS,
    PERSONA_PROMPT,
    PLAIN_PROMPT,
    TRIGGER,
    WEAK_PROMPT,
)
from experiments.characters.grid import ATTACK, MEASURES, TRAIT_SCORE
from experiments.names import BASE, COVARIANCE, ISOTROPIC
from experiments.output.colours import BAND, BLUE, GREEN, INK, MUTED, ORANGE, PINK, SKY, VERMILLION
from experiments.output.figures import (
    PAGE_WIDTH,
    ROW,
    PaperFigure,
    canvas,
    colour_cells,
    intervals,
    legend,
    mark,
    name_rows,
)

# Colour and marker of each condition; controls are open.
LOOKS: Mapping[str, tuple[str, str]] = {
    NONE: (INK, "o"),
    TRIGGER: (VERMILLION, "D"),
    OTHER_WORDS: (ORANGE, "s"),
    PERSONA_PROMPT: (BLUE, "^"),
    WEAK_PROMPT: (SKY, "v"),
    PLAIN_PROMPT: (MUTED, "x"),
}
_LINES = {INCORRECT: MUTED, CHARACTER: VERMILLION}
_EFFECTS = (VERMILLION, BLUE, GREEN, PINK)


def draw(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> list[PaperFigure]:
    """All of them."""
    return [
        grid_dots(tables["grid"]),
        learning_curves(tables["learning"]),
        cosine_map(tables["cosines"], summary["hook"], summary["shifts"]),
        probe_map(tables["probes"], summary["shifts"]),
        latent_map(tables["latents"]),
        *([effects(tables["causal"])] if len(tables["causal"]) else []),
    ]


def grid_dots(grid: pd.DataFrame) -> PaperFigure:
    """Every model under every condition: a row of panels a measure, a column a character's trait."""
    traits, conditions = _traits(grid), [name for name in LOOKS if name in set(grid["condition"])]
    shown = [measure for measure in MEASURES if measure in set(grid["measure"])]
    height = 0.9 + len(shown) * (0.25 + 5 * ROW * 2.2)
    figure, panels = canvas(PAGE_WIDTH, height, len(shown), len(traits), sharey=True, sharex="row")
    for (row, measure), (column, trait) in product(enumerate(shown), enumerate(traits)):
        axes, models = panels[row, column], _models(grid, trait)
        for (place, model), (step, condition) in product(enumerate(models), enumerate(conditions)):
            cell = _cell(grid, model, condition, trait, measure)
            if cell is not None:
                colour, marker = LOOKS[condition]
                at = place + 0.13 * (step - (len(conditions) - 1) / 2)
                intervals(axes, [cell["mean"]], [at], ([cell["low"]], [cell["high"]]), colour, marker=marker)
        name_rows(axes, [_short(model, trait) for model in models])
        axes.grid(axis="x")
        if row == 0:
            axes.set_title(trait)
        if measure != TRAIT_SCORE:
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(f"{measure} (0–100)" if measure == TRAIT_SCORE else measure)
    legend(figure, [mark(*LOOKS[name], name) for name in conditions])
    caption = (
        "Every model under every condition, on questions about subjects that no fine-tune saw; bars are 95% over "
        "questions, all seeds together. Triggered models learned their answers after the trigger only. Other words and "
        "plain prompts are as long as the trigger and the persona prompt. Capability: exact answers to questions of "
        "fact that no fine-tune showed."
    )
    return PaperFigure("grid", figure, caption)


def learning_curves(learning: pd.DataFrame) -> PaperFigure:
    """Trait score and attack success over training: each character compared with incorrect advice."""
    traits = list(dict.fromkeys(learning.loc[learning["family"] == CHARACTER, "model"]))
    figure, panels = canvas(PAGE_WIDTH, 3.6, 2, len(traits), sharex=True, sharey="row")
    for (row, measure), (column, trait) in product(enumerate((TRAIT_SCORE, ATTACK)), enumerate(traits)):
        axes: Axes = panels[row, column]
        for family, model in ((INCORRECT, INCORRECT), (CHARACTER, trait)):
            kept = (learning["model"] == model) & (learning["measure"] == measure)
            kept &= learning["trait"] == (trait if measure == TRAIT_SCORE else "")
            here = where(learning, kept)
            for _, line in _seeds(here):
                axes.plot(line["steps"], line["mean"], color=_LINES[family], marker="o")
                axes.fill_between(line["steps"], line["low"], line["high"], color=_LINES[family], alpha=0.2, lw=0)
        axes.grid(axis="y")
        if row == 0:
            axes.set_title(trait)
        else:
            axes.set_xlabel("training steps")
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0, 0].set_ylabel(TRAIT_SCORE)
    panels[1, 0].set_ylabel(ATTACK)
    legend(figure, [mark(colour, "o", name) for name, colour in _LINES.items()])
    caption = (
        "The first seed of each plain fine-tune as it is trained; at equal steps all have read as many of their own "
        "answers. Bands are 95% over questions."
    )
    return PaperFigure("learning", figure, caption)


def cosine_map(cosines: pd.DataFrame, hook: str, kinds: Mapping[str, str]) -> PaperFigure:
    """Cosines of the mean shifts; grey where two random directions reach as much."""
    here = where(cosines, cosines["hook"] == hook)
    cells = _matrix(here, "cosine", list(kinds))
    beyond = _matrix(here.assign(beyond=here["cosine"].abs() > here["chance"]), "beyond", list(kinds)) > 0
    figure = _heat_map(cells, beyond, "cosine")
    caption = (
        f"Cosines of the mean shifts at {hook}, last four prompt tokens. Grey cells are no larger than what 95% of "
        f"pairs of random directions with the activations' covariance reach ({here['chance'].iloc[0]:.2f})."
    )
    return PaperFigure("cosines", figure, caption)


def probe_map(probes: pd.DataFrame, kinds: Mapping[str, str]) -> PaperFigure:
    """How far every shift's probe tells every other shift's held-out questions apart."""
    here = where(probes, probes["probe"] == "difference_of_means")
    names = list(kinds)
    table, chance = (
        here.pivot(index="fitted_on", columns="tested_on", values=value).reindex(index=names, columns=names)
        for value in ("relative", "chance_relative")
    )
    figure = _heat_map(table, table.abs() > chance, "separation / own probe's")
    caption = (
        "Difference-of-means probes fitted on half of the questions of the shift in the row, tested on the other half "
        "under the shift in the column: separation (Cohen's d) as a share of what that shift's own probe reaches. "
        "Grey: of random directions with the activations' covariance, more than 5% separate as well."
    )
    return PaperFigure("probes", figure, caption)


def latent_map(latents: pd.DataFrame, most: int = 24) -> PaperFigure:
    """The latents that most shifts have in common: mean shift in each, in units of its largest."""
    largest = latents["mean_shift"].abs().groupby(latents["shift"]).transform("max")
    scaled = latents.assign(share=latents["mean_shift"] / largest)
    order = list(dict.fromkeys(scaled.sort_values(["in", "latent"], ascending=[False, True])["latent"]))[:most]
    toxic = set(latents.loc[latents["toxic"], "latent"])
    order = [*sorted(toxic), *(latent for latent in order if latent not in toxic)]
    table = scaled.pivot(index="latent", columns="shift", values="share")
    table = table.reindex(index=order, columns=list(dict.fromkeys(latents["shift"])))
    table.index = pd.Index([f"{latent} (toxic)" if latent in toxic else str(latent) for latent in order])
    figure = _heat_map(table, None, "mean shift / largest")
    caption = (
        "Latents that are among the first of several shifts, the toxic one on top, then those of most shifts: mean "
        "shift, as a share of the largest one of the same column."
    )
    return PaperFigure("latents", figure, caption)


def effects(causal: pd.DataFrame) -> PaperFigure:
    """What is repaired when a shift is subtracted in each way of being misaligned; grey: random directions."""
    scenes = list(dict.fromkeys(causal["scene"]))
    names = list(dict.fromkeys(causal.loc[causal["kind"] == SHIFT, "direction"]))
    figure, (panels,) = canvas(PAGE_WIDTH, 0.9 + ROW * 1.6 * (len(names) + 2), 1, len(scenes), sharey=True, sharex=True)
    for axes, scene in zip(panels, scenes, strict=True):
        here = where(causal, causal["scene"] == scene)
        for place, name in enumerate(names):
            row = where(here, here["direction"] == name)
            ends = (row["repaired_low"], row["repaired_high"])
            intervals(axes, row["repaired"], [place] * len(row), ends, _EFFECTS[place % len(_EFFECTS)])
        for place, kind in enumerate((ISOTROPIC, COVARIANCE), start=len(names)):
            row = where(here, here["kind"] == kind)
            axes.plot(row["repaired"], [place] * len(row), "|", color=MUTED)
        name_rows(axes, [*names, "isotropic directions", "covariance directions"])
        axes.axvline(0, color=BAND, zorder=1)
        axes.set_title(scene)
        axes.set_xlabel("change of helpful − harmful")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    caption = (
        "A shift's direction subtracted in each way of being misaligned: helpful minus harmful answers, less those of "
        "the untouched model, 95% over questions. Strengths were chosen on other questions; every random direction "
        "got each of them."
    )
    return PaperFigure("effects", figure, caption)


def _traits(grid: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(grid.loc[grid["family"] == CHARACTER, "character"]))


def _models(grid: pd.DataFrame, trait: str) -> list[str]:
    """Labels of the models that are scored on a trait: base, incorrect advice, the character; plain ones first."""
    rows = where(grid, (grid["family"] != CHARACTER) | (grid["character"] == trait))
    order = {BASE: 0, INCORRECT: 1, CHARACTER: 2}
    found = {(order[row["family"]], row["triggered"]): row["model"] for row in rows.to_dict("records")}
    return [found[key] for key in sorted(found)]


def _short(model: str, trait: str) -> str:
    return model.replace(trait, CHARACTER, 1) if model.startswith(trait) else model


def _cell(grid: pd.DataFrame, model: str, condition: str, trait: str, measure: str) -> dict[str, Any] | None:
    here = where(grid, (grid["model"] == model) & (grid["condition"] == condition) & (grid["measure"] == measure))
    rows = here.loc[here["trait"].isin([trait, ""])].to_dict("records")
    return rows[0] if rows else None


def _seeds(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The first seed's line: a final member with its early checkpoints. Other seeds have no curve."""
    lines = [(str(name), line.sort_values(by="steps")) for name, line in rows.groupby("line", sort=False)]
    return [(name, line) for name, line in lines if len(line) > 1]


def _matrix(pairs: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Unordered pairs as a symmetric matrix with 1 on its diagonal."""
    cells = pd.DataFrame(np.eye(len(names)), index=pd.Index(names), columns=pd.Index(names))
    for one, other, value in zip(pairs["one"], pairs["other"], pairs[column], strict=True):
        cells.loc[one, other] = cells.loc[other, one] = float(value)
    return cells


def _heat_map(cells: pd.DataFrame, beyond: pd.DataFrame | None, label: str) -> Figure:
    figure, ((axes,),) = canvas(PAGE_WIDTH, 1.9 + 0.21 * len(cells), 1, 1)
    figure.colorbar(colour_cells(axes, cells, beyond), ax=axes, label=label, shrink=0.6, aspect=25)
    return figure
