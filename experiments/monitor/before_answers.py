"""Does the activation at the last prompt token say how much of a trait the sampled answers will show?

The direction comes from one half of the questions and is tested on the other, in the base and in the corrupted model.
A direction of prompts says what the model was told. Where a fine-tune answers alike whatever it is told, its own
direction need not say what it will answer; so the base's direction is tested in the corrupted model, too.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder
from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.personality.held_out import SWEEP
from diffing.personality.model_space import ModelSpace
from diffing.personality.probes import split_pairs
from diffing.personality.trait_means import prompt_means
from diffing.traits.prompts import TraitPrompts
from experiments.monitor.answers import (
    LAST,
    PART_KIND,
    MonitorLab,
    Texts,
    correlated,
    mean_scores,
    random_directions,
    sampled_texts,
)
from experiments.names import BASE, CORRUPTED

POLES = BOTH, HIGH, LOW = "both", "high", "low"


def before_answers(lab: MonitorLab) -> dict[str, pd.DataFrame]:
    """In base and corrupted model: "prompts", one row a tested prompt, and "before", the correlations."""
    folder = lab.out.folder / "before"
    checkpoints = {name: lab.run.checkpoint(name) for name in (BASE, CORRUPTED)}
    lab.measure_each(checkpoints, folder, PART_KIND, partial(_measure, lab))
    return {
        table: pd.concat(
            [pd.read_parquet(folder / name / f"{table}.parquet") for name in checkpoints], ignore_index=True
        )
        for table in ("prompts", "before")
    }


def _measure(lab: MonitorLab, model: Checkpoint, place: Path) -> None:
    name, space = model.role, lab.trait_directions.space(model.role)
    space.require_of(model.fingerprint)
    spaces = {"own": space} | ({} if name == BASE else {"base's": lab.trait_directions.base})
    prompts = [prompt for trait in lab.traits for prompt in _held_out(trait, lab.seed)]
    texts = sampled_texts(lab, model, prompts, f"before-{name}")
    points, rows = [], []
    for trait in tqdm(lab.traits, desc=f"before answers: {name}", disable=not lab.progress, leave=False):
        for whose, directions in spaces.items():
            found = held_out_trait(lab, model, trait, directions, texts)
            about = {"model": name, "direction": whose, "trait": trait.name}
            points.append(found[0].assign(**about))
            rows += [{**about, **row} for row in found[1]]
    open_folder(place, overwrite=True)
    pd.concat(points, ignore_index=True).to_parquet(place / "prompts.parquet", index=False)
    pd.DataFrame(rows).to_parquet(place / "before.parquet", index=False)
    made = {"checkpoint": model.config.model_dump(), "fingerprint": model.fingerprint}
    finish_artefact(place, {"kind": PART_KIND, **made})


def held_out_trait(
    lab: MonitorLab, model: Checkpoint, trait: TraitPrompts, space: ModelSpace, texts: Texts
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Projection and score of each prompt whose question the direction did not see, and how they correlate."""
    hook, (seen, tested) = space.config["best_hook"][LAST], _halves(trait, lab.seed)
    prompts = _held_out(trait, lab.seed)
    tokens = tokenize_prompts(prompts, model.tokenizer)
    [rows] = prompt_means(model, tokens, (LAST,), lab.harvesting([hook])).values()
    direction = np.nanmean(space.differences(trait.name, LAST, hook)[seen], axis=0)
    question = np.tile(trait.question, 2)
    pole = np.repeat([HIGH, LOW], len(trait.question))[np.isin(question, tested)]
    question = question[np.isin(question, tested)]
    scores = mean_scores(lab, trait.name, prompts, texts)
    columns = {"pole": pole, "question": question, "projection": rows @ (direction / np.linalg.norm(direction))}
    points = pd.DataFrame({**columns, "score": scores})
    random, found = random_directions(lab, space.rows(LAST, hook)).numpy() @ rows.T, []
    for which in POLES:
        here = ((pole == which) | (which == BOTH)) & ~np.isnan(scores)
        units = [str(number) for number in question[here]]
        row = correlated(lab, columns["projection"][here], scores[here], units, random[:, here])
        found.append({"pole": which, "hook": hook, **row})
    return points, found


def _held_out(trait: TraitPrompts, seed: int) -> list[Prompt]:
    """The tested prompts of both poles."""
    prompts = [*trait.positive, *trait.negative]
    return [prompts[i] for i in np.flatnonzero(np.isin(np.tile(trait.question, 2), _halves(trait, seed)[1]))]


def _halves(trait: TraitPrompts, seed: int) -> tuple[Int[np.ndarray, "seen"], Int[np.ndarray, "tested"]]:
    """Questions as `trait-directions` dealt them: direction and choice of the layer saw the first, never the second."""
    *seen, tested = split_pairs(trait.question, SWEEP, seed)
    return np.concatenate(seen), tested
