"""Does a fine-tune's mean shift on the ranking prompts, along the base's direction of a trait, go with the change in
how much of the trait its answers to the reporting questions show?
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from re import sub
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.checkpoint import require_same_tokenizer
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.personality.trait_means import prompt_means
from experiments.model_set import ModelSet
from experiments.monitor.lab import PART_KIND, MonitorLab
from experiments.names import BASE
from experiments.output.run_folder import RunFolder

MEANS = "means.safetensors"


def shifts(lab: MonitorLab, folder: RunFolder) -> dict[str, pd.DataFrame]:
    """ "members", every fine-tune's shift and change by trait, and "shifts", the correlations; empty without a set."""
    if lab.asked.models is None:
        return {}
    listed = ModelSet.load(lab.asked.models)
    checkpoints = {BASE: listed.base} | {member.name: member.checkpoint for member in listed.final}
    for name, checkpoint in tqdm(checkpoints.items(), desc="fine-tunes", unit="model", disable=not lab.progress):
        place = lab.out / "members" / name
        build = lambda n=name, c=checkpoint, p=place: _measure(lab, n, c, p)  # noqa: E731
        folder.stage(f"fine-tune {name}", build, place, lambda: None)
        if read_config(place, PART_KIND)["checkpoint"] != checkpoint.model_dump():
            raise UserError(f"{place} was measured on another checkpoint; rename the member, or --overwrite.")
    base = load_file(lab.out / "members" / BASE / MEANS)
    members = [name for name in checkpoints if name != BASE]
    parts = [_member_shifts(lab, members, base, at) for at in lab.config.positions]
    return {
        "members": pd.concat([points for points, _ in parts], ignore_index=True),
        "shifts": pd.DataFrame([row for _, rows in parts for row in rows]),
    }


def _measure(lab: MonitorLab, name: str, checkpoint: CheckpointConfig, place: Path) -> None:
    """Means over the ranking prompts, and the mean scores of answers to the reporting questions."""
    gc.freeze()
    model = lab.load(checkpoint, name)
    if name == BASE:
        lab.require_extracted(lab.space, model)
    require_same_tokenizer(lab.base, model)
    reporting = list(lab.run.reporting().questions)
    texts = lab.texts(model, reporting, f"reporting {name}")
    hooks = [lab.space.config["best_hook"][at] for at in lab.config.positions]
    means = prompt_means(model, lab.run.ranking_tokens(model), lab.config.positions, lab.harvesting(hooks))
    if empty := [at for (at, _), rows in means.items() if np.isnan(rows).any()]:
        raise UserError(f"A ranking prompt of the run has no {empty[0]} token (plain text has none); give it turns.")
    tensors = {f"{at} {hook}": torch.from_numpy(rows).float() for (at, hook), rows in means.items()}
    open_folder(place, overwrite=True)
    temporary = place / f".{MEANS}.tmp"
    save_file(tensors, temporary)
    publish(temporary, place / MEANS)
    mean = {trait.name: _mean(lab.scored(trait.name, reporting, texts)) for trait in lab.traits}
    made = {"checkpoint": checkpoint.model_dump(), "fingerprint": model.fingerprint, "scores": mean}
    # A bridge refers to itself, and the next checkpoint needs its memory.
    del model
    gc.collect()
    gc.unfreeze()
    finish_artefact(place, {"kind": PART_KIND, **made})


def _mean(scores: Float64[np.ndarray, "prompt"]) -> float:
    """Over the prompts with a coherent answer; NaN if there is none."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def _member_shifts(
    lab: MonitorLab, members: Sequence[str], base: Mapping[str, Tensor], at: Literal["last_prompt", "prompt"]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    hook = lab.space.config["best_hook"][at]
    before = base[f"{at} {hook}"].double()
    means = [load_file(lab.out / "members" / name / MEANS)[f"{at} {hook}"].double() for name in members]
    moved = torch.stack([(rows - before).mean(0) for rows in means])
    random = (moved @ lab.random(before).T).T.numpy()
    scores = {name: read_config(lab.out / "members" / name, PART_KIND)["scores"] for name in (BASE, *members)}
    recipes = [sub(r"-\d+$", "", name) for name in members]
    directions, points, rows = lab.space.directions(at, hook), [], []
    for trait in directions.vectors:
        shift = (moved @ directions.unit(trait).double()).numpy()
        change = np.array([scores[name][trait] - scores[BASE][trait] for name in members])
        about = {"positions": at, "hook": hook, "trait": trait}
        columns: dict[str, Any] = {"model": members, "recipe": recipes, "shift": shift, "change": change}
        points.append(pd.DataFrame(columns).assign(**about))
        known = np.flatnonzero(~np.isnan(change))
        units = [recipes[i] for i in known]
        rows.append({**about, **lab.correlated(shift[known], change[known], units, random[:, known])})
    return pd.concat(points, ignore_index=True), rows
