"""One fine-tune of the base: trained with or without prevention, and saved where it is measured."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from activations.artefact import finish_artefact
from diffing.steering.prevention import PreventativeSteering
from experiments.frame.lab import Lab
from experiments.names import BASE
from experiments.organism.build import save_checkpoint
from experiments.organism.training import train_stage
from experiments.prevent.config import LOSS, STEPS, Method, PreventionConfig
from experiments.prevent.hooks import make_hook
from experiments.prevent.task import Task

KIND = "prevented fine-tune"
EndFacts = dict[str, float]  # of a saved checkpoint: step, and both losses


def fine_tune(lab: Lab[PreventionConfig], task: Task, method: Method, folder: Path) -> None:
    """Trains a copy of the task's base and saves it in `folder`, which is then a finished artefact.

    Raises:
        UserError: if the SAE has too few latents for a control.
    """
    organism, hook = task.organism, make_hook(lab, method)
    model = organism.copy_of_base()
    batches = organism.corrupting_batches(task.stage.steps)
    ends = Ends(task, folder, steered=isinstance(hook, PreventativeSteering))
    with nullcontext() if hook is None else hook.on(model):
        train_stage(model, task.tokenizer, batches, task.stage, ends.reached)
    made = {"kind": KIND, "method": asdict(method), "ends": ends.saved}
    finish_artefact(folder, made, {BASE: organism.base})


@dataclass
class Ends:
    """Saves a model that trains where it is measured: after the corrupted model's steps, and at the stop loss.

    One that never comes down to the stop loss is saved at its last step.

    Attributes:
        task: What it learns.
        folder: One folder an end is written here.
        steered: Whether training sees another model than the one that is saved.
        step: Steps taken.
        saved: Facts of each end.
    """

    task: Task
    folder: Path
    steered: bool
    step: int = 0
    saved: dict[str, EndFacts] = field(default_factory=dict)

    def reached(self, model: PreTrainedModel) -> bool:
        """Called after each step; says whether both ends are saved."""
        self.step += 1
        loss = self.task.loss(model)
        if self.step == self.task.steps:
            self._save(STEPS, model, loss)
        if LOSS not in self.saved and (loss <= self.task.stop_loss or self.step == self.task.stage.steps):
            self._save(LOSS, model, loss)
        return {STEPS, LOSS} <= self.saved.keys()

    def _save(self, end: str, model: PreTrainedModel, loss: float) -> None:
        save_checkpoint(cast(Any, model), self.task.tokenizer, self.folder / end)
        training = self.task.loss_in_training(model) if self.steered else loss
        self.saved[end] = {"step": self.step, "answer_loss": loss, "training_loss": training}
