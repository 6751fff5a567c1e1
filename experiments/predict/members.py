"""Measures the members of a set with what a run measured its own pair with: readings of prompts, and behaviour.

What was measured is kept in a folder for each model, and used again.
"""

from dataclasses import dataclass
from pathlib import Path

from activations.artefact import CONFIG, read_config
from activations.checkpoint import Checkpoint
from diffing.behavior.rates import BehaviorScores, score
from diffing.prediction.reading import ModelReading, Shifts, read_model, shifts
from experiments.frame.lab import Lab
from experiments.model_set import Member
from experiments.names import BASE
from experiments.predict.config import PredictConfig

PredictLab = Lab[PredictConfig]


@dataclass(frozen=True)
class MeasuredModel:
    """One member.

    Attributes:
        member: Which.
        shifts: How its reading differs from the base's.
        rates: How it behaves on the reporting questions.
        folder: Where its reading is kept.
    """

    member: Member
    shifts: Shifts
    rates: BehaviorScores
    folder: Path

    @property
    def reading(self) -> ModelReading:
        """What it showed, prompt by prompt; read from its folder, as there are many."""
        return ModelReading.load(self.folder)


def measure_members(lab: PredictLab) -> dict[str, MeasuredModel]:
    """All members by name, measured now or before.

    Raises:
        UserError: if a checkpoint cannot be read or does not fit the base, or another model was measured under its
            name.
    """
    members, base, trials = lab.models.members, base_reading(lab), lab.trials(lab.config.samples)
    folder = lab.out.folder / "members"

    def measure(model: Checkpoint, kept: Path) -> None:
        rates = score(trials.untouched(model, lab.reporting)).to_dict()
        made = {"checkpoint": model.config.model_dump(), "fingerprint": model.fingerprint, "rates": rates}
        _read(lab, model).save(kept, made)

    lab.measure_each({member.name: member.checkpoint for member in members}, folder, ModelReading.KIND, measure)
    return {member.name: _measured(lab, member, folder / member.name, base) for member in members}


def base_reading(lab: PredictLab) -> ModelReading:
    """What the base shows on the ranking prompts.

    Raises:
        UserError: if the set's base is not the run's.
    """
    folder = lab.out.folder / BASE
    if not (folder / CONFIG).exists():
        made = {"checkpoint": lab.base.config.model_dump(), "fingerprint": lab.base.fingerprint}
        _read(lab, lab.base).save(folder, made)
    return ModelReading.load(folder)


def _read(lab: PredictLab, model: Checkpoint) -> ModelReading:
    return read_model(lab.sae, model, lab.base, lab.ranking_tokens, lab.hook, lab.harvesting())


def _measured(lab: PredictLab, member: Member, folder: Path, base: ModelReading) -> MeasuredModel:
    rates = BehaviorScores(**read_config(folder, ModelReading.KIND)["rates"])
    return MeasuredModel(member, shifts(base, ModelReading.load(folder), lab.direction), rates, folder)
