"""Fine-tunes the base with every method, and asks each fine-tune at both ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from tqdm import tqdm

from activations.artefact import read_config
from activations.checkpoint import Checkpoint
from activations.config import CheckpointConfig
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.names import BASE
from experiments.organism.training import one_thread
from experiments.prevent.config import FAMILIES, PLAIN, Chosen, Method, PreventionConfig, controls, treatments
from experiments.prevent.fine_tune import KIND, EndFacts, fine_tune
from experiments.prevent.outcomes import MeasuredFineTune, choose_doses, finished_rows
from experiments.prevent.questions import Questions
from experiments.prevent.task import Task


def measure(lab: Lab[PreventionConfig]) -> Measured:
    """The table "prevention", and its rows as facts.

    One row a fine-tune and `end` (and one for the base): `family`, `dose`, `control`, `step`, `answer_loss` and
    `training_loss` (nats a token; the latter with steering on), whether the stop loss was `reached`, rates on the
    reporting questions (`harmful` with `low`/`high`, `helpful`, `incoherent`), the same as `selection_*` and
    `trained_*`, `capability`; `change` of harmful against the plain fine-tune with its interval, the `prevented` share
    of its harmful answers, and whether the dose was `chosen` at equal `answer_loss` or, in `chosen_in_training`, at
    equal `training_loss`.

    Raises:
        UserError: if the organism was made without a stop loss, or the SAE has too few latents for the controls.
    """
    task = Task(lab.organism, lab.config.patience)
    stop_loss = task.stop_loss
    with one_thread():
        rows = finished_rows(*_Prevention(lab, task, Questions.of(lab)).run())
    table = pd.DataFrame(rows).astype({"control": "Int64"})
    return Measured({"prevention": table}, rows, {"stop_loss": stop_loss})


@dataclass(frozen=True)
class _Prevention:
    """Every fine-tune of one run.

    Attributes:
        lab: The run, and where models are kept.
        task: What is learned.
        questions: What every model is asked.
    """

    lab: Lab[PreventionConfig]
    task: Task
    questions: Questions

    def run(self) -> tuple[list[MeasuredFineTune], Chosen]:
        """The base, the plain fine-tune, every dose, and controls of the doses that are chosen."""
        config = self.lab.config
        treated = treatments(config)
        total = 1 + len(treated) + len(FAMILIES) * config.controls
        with tqdm(total=total, desc="prevention", unit="model", disable=not self.lab.progress) as bar:
            found = [self._untrained()]
            bar.update()
            found += self._fine_tuned(treated, bar)
            chosen = choose_doses([one.row() for one in found], config, self.task.stop_loss)
            others = controls(chosen, config.controls)
            bar.total = bar.n + len(others)
            found += self._fine_tuned(others, bar)
        return found, chosen

    def _untrained(self) -> MeasuredFineTune:
        """The base."""
        loss = self.task.loss(self.task.organism.copy_of_base().eval())
        return self._measured(PLAIN, BASE, {"step": 0, "answer_loss": loss, "training_loss": loss}, self.lab.base)

    def _fine_tuned(self, methods: Sequence[Method], bar: tqdm) -> list[MeasuredFineTune]:
        """Each fine-tune at both ends; those that an earlier call finished are reused."""
        found = []
        for method in methods:
            place = self.lab.out.folder / "models" / method.folder
            self.lab.out.stage(method.name, partial(fine_tune, self.lab, self.task, method, place), place, lambda: None)
            for end, facts in read_config(place, KIND)["ends"].items():
                model = self.lab.load(CheckpointConfig(model=str(place / end)), f"{method.folder}-{end}")
                found.append(self._measured(method, end, facts, model))
            bar.update()
        return found

    def _measured(self, method: Method, end: str, facts: EndFacts, model: Checkpoint) -> MeasuredFineTune:
        reached = facts["answer_loss"] <= self.task.stop_loss
        return MeasuredFineTune(method, end, {**facts, "reached": reached}, self.questions.ask(model))
