"""Measures a set of fine-tunes with what a run measured its own pair with: readings of prompts, and behaviour.

Every checkpoint is loaded once, and is in memory beside the base. What was measured is kept in a folder for each model,
and used again.
"""

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from activations.artefact import CONFIG, read_config
from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.behavior.rates import BehaviorScores, score
from diffing.prediction.reading import ModelReading, Shifts, read_model, shifts
from diffing.steering.arms import untouched
from diffing.steering.experiment import Bench, run_cells
from experiments.model_set import Member, ModelSet
from experiments.names import BASE
from experiments.run.finished_run import FinishedRun


@dataclass(frozen=True)
class MeasuredModel:
    """One member: how its reading differs from the base's, and how it behaves on the reporting questions."""

    member: Member
    shifts: Shifts
    rates: BehaviorScores


class Measurements:
    """Measures the members of a set one after the other.

    Args:
        run: Whose SAE, prompts, direction and judge are used.
        models: The set; its base is the run's.
        samples: Answers to each question.
        folder: Where measurements are kept.
        progress: Shows bars.

    Raises:
        UserError: if the run measured no behaviour.
    """

    def __init__(self, run: FinishedRun, models: ModelSet, samples: int, folder: Path, progress: bool) -> None:
        self.run, self.models, self.folder, self.progress = run, models, folder, progress
        self.sae, self.unit = run.sae(), run.unit()
        self.questions = run.reporting()
        # Nothing is added to any model, so the unit of strengths does not matter.
        self.bench = Bench(run.config.hook, 1.0, self.sae, run.behavior(samples))
        (folder / "transcripts").mkdir(parents=True, exist_ok=True)

    def measure(self, member: Member) -> MeasuredModel:
        """A member's shifts and rates, measured now or before.

        Raises:
            UserError: if the checkpoint cannot be read or does not fit the base, or another model was measured under
                its name.
        """
        folder = self.folder / "members" / member.name
        if not (folder / CONFIG).exists():
            self._load_and_measure(member, folder)
        found = read_config(folder, ModelReading.KIND)
        if found["checkpoint"] != member.checkpoint.model_dump():
            raise UserError(f"{folder} was measured on another checkpoint; rename the member, or --overwrite.")
        return MeasuredModel(
            member, shifts(self.base, self.reading(member), self.unit), BehaviorScores(**found["rates"])
        )

    def reading(self, member: Member) -> ModelReading:
        """What a measured member showed, prompt by prompt."""
        return ModelReading.load(self.folder / "members" / member.name)

    @cached_property
    def base(self) -> ModelReading:
        """The base's reading.

        Raises:
            UserError: if the set's base is not the run's.
        """
        folder = self.folder / BASE
        if not (folder / CONFIG).exists():
            made = {"checkpoint": self.models.base.model_dump(), "fingerprint": self._base_model.fingerprint}
            self._read(self._base_model).save(folder, made)
        return ModelReading.load(folder)

    @cached_property
    def _base_model(self) -> Checkpoint:
        model = self._load(self.models.base, BASE)
        self.run.require_base(model)
        return model

    def _load_and_measure(self, member: Member, folder: Path) -> None:
        gc.freeze()
        model = self._load(member.checkpoint, member.name)
        require_same_tokenizer(self._base_model, model)
        transcripts = self.folder / "transcripts" / f"{member.name}.jsonl"
        cell = untouched(self.sae.cfg.d_in)
        [answered] = run_cells(self.bench, model, [cell], self.questions, transcripts, self.progress)
        made: dict[str, Any] = {
            "checkpoint": member.checkpoint.model_dump(),
            "fingerprint": model.fingerprint,
            "rates": score(answered.counts).to_dict(),
        }
        self._read(model).save(folder, made)
        # A bridge refers to itself, and the next checkpoint needs its memory; only what is new has to be looked at.
        del model
        gc.collect()
        gc.unfreeze()

    def _read(self, model: Checkpoint) -> ModelReading:
        base = self._base_model
        tokens = self.run.ranking_tokens(base)
        return read_model(self.sae, model, base, tokens, self.run.config.hook, self.run.harvesting())

    def _load(self, checkpoint: CheckpointConfig, role: str) -> Checkpoint:
        model = load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), role)
        model.require_hook(self.run.config.hook)
        return model
