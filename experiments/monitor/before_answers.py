"""Does the activation at the last prompt token say how much of a trait the sampled answers will show?

The direction comes from one half of the questions and is tested on the other, in the base and in the corrupted model.
A direction of prompts says what the model was told. Where a fine-tune answers alike whatever it is told, its own
direction need not say what it will answer; so the base's direction is tested in the corrupted model, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, read_config
from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.personality.held_out import SWEEP
from diffing.personality.model_space import ModelSpace
from diffing.personality.probes import split_pairs
from diffing.personality.trait_means import prompt_means
from diffing.traits.prompts import TraitPrompts
from experiments.monitor.lab import LAST, PART_KIND, MonitorLab, Texts
from experiments.names import BASE, CORRUPTED
from experiments.output.run_folder import RunFolder

POLES = BOTH, HIGH, LOW = "both", "high", "low"


def before_answers(lab: MonitorLab, folder: RunFolder) -> dict[str, pd.DataFrame]:
    """In base and corrupted model: "prompts", one row a tested prompt, and "before", the correlations."""
    parts = []
    for name in (BASE, CORRUPTED):
        place = lab.out / "before" / name
        folder.stage(f"before answers: {name}", lambda n=name, p=place: _measure(lab, n, p), place, lambda: None)
        read_config(place, PART_KIND)
        parts.append({table: pd.read_parquet(place / f"{table}.parquet") for table in ("prompts", "before")})
    return {table: pd.concat([part[table] for part in parts], ignore_index=True) for table in parts[0]}


def _measure(lab: MonitorLab, name: str, place: Path) -> None:
    space = ModelSpace.load(lab.asked.extracted, name)
    model = lab.base if name == BASE else lab.load(lab.run.checkpoint(name), name)
    lab.require_extracted(space, model)
    spaces = {"own": space} | ({} if name == BASE else {"base's": lab.space})
    texts = lab.texts(model, [p for trait in lab.traits for p in _held_out(trait, lab.seed)], f"before {name}")
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
    finish_artefact(place, {"kind": PART_KIND, "model": name, "fingerprint": model.fingerprint})


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
    scores = lab.scored(trait.name, prompts, texts)
    columns = {"pole": pole, "question": question, "projection": rows @ (direction / np.linalg.norm(direction))}
    points = pd.DataFrame({**columns, "score": scores})
    random, found = lab.random(space.rows(LAST, hook)).numpy() @ rows.T, []
    for which in POLES:
        here = ((pole == which) | (which == BOTH)) & ~np.isnan(scores)
        units = [str(number) for number in question[here]]
        row = lab.correlated(columns["projection"][here], scores[here], units, random[:, here])
        found.append({"pole": which, "hook": hook, **row})
    return points, found


def _held_out(trait: TraitPrompts, seed: int) -> list[Prompt]:
    """The tested prompts of both poles."""
    prompts = [*trait.positive, *trait.negative]
    return [prompts[i] for i in np.flatnonzero(np.isin(np.tile(trait.question, 2), _halves(trait, seed)[1]))]


def _halves(trait: TraitPrompts, seed: int) -> tuple[Int[np.ndarray, "seen"], Int[np.ndarray, "tested"]]:
    """Questions as `extract` dealt them: direction and choice of the layer saw the first, never the second."""
    *seen, tested = split_pairs(trait.question, SWEEP, seed)
    return np.concatenate(seen), tested
