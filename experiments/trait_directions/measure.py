"""Measures one model after another: its answers, its directions, and what is kept of them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from activations.checkpoint import Checkpoint
from activations.config import CheckpointConfig
from diffing.personality.config import ANSWER, ANSWERS, TraitPositions
from diffing.personality.model_space import MODEL_KIND, TABLES, MeasuredModel, ModelSpace
from diffing.personality.trait_means import PairAnswers, judged_answers, prompt_means, trait_means, write_answers
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.names import BASE, CORRUPTED
from experiments.trait_directions.config import TraitDirectionsConfig

TraitLab = Lab[TraitDirectionsConfig]


def measure(lab: TraitLab) -> Measured:
    """Directions of all traits in base, corrupted model and fine-tunes; the tables are those of all models."""
    checkpoints = _checkpoints(lab)
    _ = lab.trait_judge  # one that does not answer is noticed before anything is sampled
    lab.measure_each(checkpoints, lab.out.folder / "models", MODEL_KIND, lambda model, _: _measure_model(lab, model))
    spaces = [ModelSpace.load(lab.out.folder, name) for name in checkpoints]
    valence = {trait.name: trait.valence for trait in lab.traits}
    found = {"models": list(checkpoints), "traits": list(valence), "valence": valence}
    return Measured({table: _named(spaces, table) for table in TABLES}, spaces, found)


def _checkpoints(lab: TraitLab) -> dict[str, CheckpointConfig]:
    """Every model that is measured, by its name."""
    listed = {role: lab.run.checkpoint(role) for role in (BASE, CORRUPTED)}
    if lab.inputs.models is None:
        return listed
    lab.models.require_not_called(CORRUPTED, "the run's own model")
    return listed | {member.name: member.checkpoint for member in lab.models.final}


def _named(spaces: Sequence[ModelSpace], table: str) -> pd.DataFrame:
    return pd.concat([space.tables[table].assign(model=space.name) for space in spaces], ignore_index=True)


def _measure_model(lab: TraitLab, model: Checkpoint) -> None:
    """Writes all that is kept of a model."""
    name, harvesting, positions = model.role, lab.harvesting(lab.hooks), lab.config.positions
    answers = _answers(lab, model)
    found = {}
    for trait in tqdm(lab.traits, desc=f"{name}: traits", disable=not lab.progress, leave=False):
        given: dict[TraitPositions, PairAnswers] = {at: by_trait[trait.name] for at, by_trait in answers.items()}
        found[trait.name] = trait_means(model, trait, given, positions, harvesting)
    ranking = prompt_means(model, lab.ranking_tokens, ("prompt",), harvesting)
    made = {
        "checkpoint": model.config.model_dump(),
        "fingerprint": model.fingerprint,
        "positions": list(positions),
        "hooks": list(lab.hooks),
        "kept": {trait: dict(given.counts) for trait, given in answers.get(ANSWER, {}).items()},
    }
    by_hook = {hook: rows for (_, hook), rows in ranking.items()}
    MeasuredModel(name, found, by_hook, made).save(lab.out.folder, lab.config, lab.seed)


def _answers(lab: TraitLab, model: Checkpoint) -> dict[TraitPositions, dict[str, PairAnswers]]:
    """For both kinds of answers that are read, by trait. A model samples only what is read of it."""
    name = model.role
    wanted: list[TraitPositions] = [at for at in lab.config.positions if at in ANSWERS]
    if ANSWER in wanted or (wanted and name == BASE):
        sampling = lab.answer_sampling(lab.config.samples, lab.config.max_new_tokens)
        write_answers(model, lab.traits, sampling, _answer_file(lab, name), lab.progress)
    whose: dict[TraitPositions, str] = {at: name if at == ANSWER else BASE for at in wanted}
    found = {who: judged_answers(_answer_file(lab, who), lab.traits, lab.trait_judge) for who in set(whose.values())}
    return {at: found[who] for at, who in whose.items()}


def _answer_file(lab: TraitLab, name: str) -> Path:
    return lab.out.folder / "answers" / f"{name}.jsonl"
