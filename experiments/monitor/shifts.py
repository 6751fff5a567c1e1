"""Does a fine-tune's mean shift on the ranking prompts, along the base's direction of a trait, go with the change in
how much of the trait its answers to the reporting questions show?
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from re import sub
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.checkpoint import Checkpoint
from activations.errors import UserError
from diffing.personality.trait_means import prompt_means
from experiments.monitor.answers import (
    PART_KIND,
    MonitorLab,
    correlated,
    mean_scores,
    random_directions,
    sampled_texts,
)
from experiments.names import BASE

MEANS = "means.safetensors"


def shifts(lab: MonitorLab) -> dict[str, pd.DataFrame]:
    """ "members", every fine-tune's shift and change by trait, and "shifts", the correlations; empty without a set."""
    if lab.inputs.models is None:
        return {}
    checkpoints = {BASE: lab.run.checkpoint(BASE)} | {one.name: one.checkpoint for one in lab.models.final}
    lab.measure_each(checkpoints, _folder(lab), PART_KIND, partial(_measure, lab))
    base = load_file(_folder(lab) / BASE / MEANS)
    members = [name for name in checkpoints if name != BASE]
    parts = [_member_shifts(lab, members, base, at) for at in lab.config.positions]
    return {
        "members": pd.concat([points for points, _ in parts], ignore_index=True),
        "shifts": pd.DataFrame([row for _, rows in parts for row in rows]),
    }


def _measure(lab: MonitorLab, model: Checkpoint, place: Path) -> None:
    """Means over the ranking prompts, and the mean scores of answers to the reporting questions."""
    reporting = list(lab.reporting.questions)
    texts = sampled_texts(lab, model, reporting, f"reporting-{model.role}")
    best = lab.trait_directions.base.config["best_hook"]
    hooks = [best[at] for at in lab.config.positions]
    means = prompt_means(model, lab.ranking_tokens, lab.config.positions, lab.harvesting(hooks))
    if empty := [at for (at, _), rows in means.items() if np.isnan(rows).any()]:
        raise UserError(f"A ranking prompt of the run has no {empty[0]} token (plain text has none); give it turns.")
    tensors = {f"{at} {hook}": torch.from_numpy(rows).float() for (at, hook), rows in means.items()}
    open_folder(place, overwrite=True)
    temporary = place / f".{MEANS}.tmp"
    save_file(tensors, temporary)
    publish(temporary, place / MEANS)
    scores = {trait.name: _mean(mean_scores(lab, trait.name, reporting, texts)) for trait in lab.traits}
    made = {"checkpoint": model.config.model_dump(), "fingerprint": model.fingerprint, "scores": scores}
    finish_artefact(place, {"kind": PART_KIND, **made})


def _folder(lab: MonitorLab) -> Path:
    return lab.out.folder / "members"


def _mean(scores: Float64[np.ndarray, "prompt"]) -> float:
    """Over the prompts with a coherent answer; NaN if there is none."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def _member_shifts(
    lab: MonitorLab, members: Sequence[str], base: Mapping[str, Tensor], at: Literal["last_prompt", "prompt"]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    known, folder = lab.trait_directions.base, _folder(lab)
    hook = known.config["best_hook"][at]
    before = base[f"{at} {hook}"].double()
    means = [load_file(folder / name / MEANS)[f"{at} {hook}"].double() for name in members]
    moved = torch.stack([(rows - before).mean(0) for rows in means])
    random = (moved @ random_directions(lab, before).T).T.numpy()
    scores = {name: read_config(folder / name, PART_KIND)["scores"] for name in (BASE, *members)}
    recipes = [sub(r"-\d+$", "", name) for name in members]
    directions, points, rows = known.directions(at, hook), [], []
    for trait in directions.vectors:
        shift = (moved @ directions.unit(trait).double()).numpy()
        change = np.array([scores[name][trait] - scores[BASE][trait] for name in members])
        about = {"positions": at, "hook": hook, "trait": trait}
        columns: dict[str, Any] = {"model": members, "recipe": recipes, "shift": shift, "change": change}
        points.append(pd.DataFrame(columns).assign(**about))
        known = np.flatnonzero(~np.isnan(change))
        units = [recipes[i] for i in known]
        rows.append({**about, **correlated(lab, shift[known], change[known], units, random[:, known])})
    return pd.concat(points, ignore_index=True), rows
