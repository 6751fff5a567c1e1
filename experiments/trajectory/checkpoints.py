"""Corrupts and re-aligns the base of a run, and saves it on the way."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from activations.artefact import finish_artefact
from experiments.frame.organism_parts import OrganismParts
from experiments.names import BASE
from experiments.organism.build import save_checkpoint
from experiments.organism.config import StageConfig
from experiments.organism.fine_tunes import helpful_again
from experiments.organism.training import Stop, one_thread, train_stage
from experiments.organism.world import Dialogue
from experiments.trajectory.config import CORRUPTION, REALIGNMENT, Moment, TrajectoryConfig

KIND = "checkpoints"


@one_thread()
def train_checkpoints(
    organism: OrganismParts, config: TrajectoryConfig, wanted: Sequence[Moment], folder: Path, progress: bool = True
) -> None:
    """Trains a copy of the base; `folder` is then a finished artefact with a checkpoint folder for each moment.

    Args:
        organism: Its base is corrupted exactly as its corrupted model was, then re-aligned.
        config: The re-alignment.
        wanted: Where the model is saved.
        folder: Checkpoints are written here, replaced if they exist.
        progress: Whether to show bars.
    """
    model, tokenizer = organism.copy_of_base(), organism.tokenizer()
    for phase, (batches, stage) in _phases(organism, config).items():
        save = _saving(tokenizer, phase, wanted, folder)
        save(model)
        train_stage(model, tokenizer, batches, stage, save, f"trajectory: {phase}" if progress else None)
    finish_artefact(folder, {"kind": KIND}, {BASE: organism.base})


def _phases(
    organism: OrganismParts, config: TrajectoryConfig
) -> dict[str, tuple[Iterator[list[Dialogue]], StageConfig]]:
    """What each phase reads, and its settings."""
    corrupting = organism.config.finetuning.model_copy(update={"steps": organism.steps})
    helpful = helpful_again(organism.config, organism.domains, config.realign_samples, config.realign)
    return {
        CORRUPTION: (organism.corrupting_batches(organism.steps), corrupting),
        REALIGNMENT: (helpful, config.realign),
    }


def _saving(tokenizer: PreTrainedTokenizerBase, phase: str, wanted: Sequence[Moment], folder: Path) -> Stop:
    """Called before the first step and after each one of a phase: saves the model where it is wanted, stops never."""
    steps = count()

    def save(model: PreTrainedModel) -> bool:
        moment = Moment(phase, next(steps))
        if moment in wanted:
            save_checkpoint(cast(Any, model), tokenizer, folder / moment.name)
        return False

    return save
