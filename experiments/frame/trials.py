"""Answers of untouched and of treated models, kept in the result's folder, with random directions as controls."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from diffing.behavior.judge import Label
from diffing.behavior.measure import Behavior, Record
from diffing.behavior.rates import BehaviorScores, LabelCounts, score
from diffing.directions.random_directions import covariance_directions, isotropic_directions
from diffing.statistics.intervals import Estimate
from diffing.steering.arms import untouched
from diffing.steering.experiment import QuestionSet, run_cells
from diffing.steering.transfer import Direction, Layers, Treated, Treatment, run_treatments, share_removed
from experiments.names import BASE, COVARIANCE, ISOTROPIC

if TYPE_CHECKING:
    from experiments.frame.lab import Lab


@dataclass(frozen=True)
class NamedDirection:
    """A direction to treat models with.

    Attributes:
        name: Of the member whose it is, or of the control.
        contrast: Which of the four means it compares; empty for random ones.
        kind: `ISOTROPIC`, `COVARIANCE`, or what the experiment calls it.
        units: Unit vector by hook; zero where both means are equal.
    """

    name: str
    contrast: str
    kind: str
    units: Direction


@dataclass(frozen=True)
class TreatmentOutcome:
    """What one treatment with one direction did to one model's answers to one half of the questions."""

    model: str
    half: str
    source: NamedDirection
    treatment: Treatment
    counts: LabelCounts
    plain: LabelCounts

    @cached_property
    def scores(self) -> BehaviorScores:
        return score(self.counts)

    @cached_property
    def removed(self) -> Estimate:
        """Share of the untouched model's harmful answers that are gone."""
        return share_removed([(self.plain, self.counts)])

    @property
    def extra_incoherent(self) -> float:
        """Incoherent answers (share) beyond those of the untouched model."""
        return self.scores.incoherent - score(self.plain).incoherent

    def row(self) -> dict[str, Any]:
        """For a table; there is no share removed of the base, nor where no harmful answer is to be removed."""
        found = {
            "model": self.model,
            "half": self.half,
            "direction": self.source.name,
            "contrast": self.source.contrast,
            "kind": self.source.kind,
            "operation": str(self.treatment.operation),
            "reach": str(self.treatment.reach),
            "hook": self.treatment.hook,
            "strength": self.treatment.strength,
            **self.scores.to_dict(),
            "extra_incoherent": self.extra_incoherent,
        }
        harmful = self.model != BASE and score(self.plain).harmful > 0
        ends = self.removed if harmful else (float("nan"),) * 3
        return found | dict(zip(("removed", "removed_low", "removed_high"), ends, strict=True))


@dataclass(frozen=True)
class Trials:
    """Asks models, untouched and treated; answers that an earlier call sampled are used again.

    Attributes:
        lab: Models, questions, SAE, and where answers are kept.
        behavior: How behaviour is measured.
        controls_of_each_kind: Random directions, isotropic and with the activations' covariance.
    """

    lab: "Lab[Any]"
    behavior: Behavior
    controls_of_each_kind: int = 8

    @cached_property
    def layers(self) -> Layers:
        """What treatments at all layers share."""
        return Layers.of(self.lab.base_reading, self.lab.sae, self.behavior)

    def capability(self) -> "tuple[QuestionSet, Trials] | None":
        """The run's questions of fact, and trials that count exact answers to them; None if the run has none."""
        found = self.lab.capability(self.behavior.answers)
        return None if found is None else (found[0], replace(self, behavior=found[1]))

    def untouched(self, model: Checkpoint, half: QuestionSet) -> LabelCounts:
        """Label counts of a model as it is."""
        transcripts = self.folder(model.role, half) / "untouched.jsonl"
        transcripts.parent.mkdir(parents=True, exist_ok=True)
        bench = self.lab.bench(self.behavior)
        return run_cells(bench, model, [untouched(model.d_model)], half, transcripts, progress=False)[0].counts

    def records(self, name: str, half: QuestionSet) -> list[Record]:
        """What an untouched model said to each question, and the labels; after `untouched`."""
        transcripts = self.folder(name, half) / "untouched.jsonl"
        found = map(json.loads, transcripts.read_text(encoding="utf-8").splitlines())
        # A call that was killed may have left some questions twice.
        by_question = {record["question"]: record for record in found}
        return [by_question[question.id] for question in half.questions]

    def answers(self, name: str, half: QuestionSet) -> Iterator[tuple[Prompt, Label]]:
        """The same as answered questions, each under an id of its own, with their labels."""
        for question, record in zip(half.questions, self.records(name, half), strict=True):
            for place, (text, label) in enumerate(zip(record["answers"], record["labels"], strict=True)):
                yield replace(question, id=f"{question.id} ({name} {place})", answer=text), Label(label)

    def treat(
        self, model: Checkpoint, half: QuestionSet, pairs: Sequence[tuple[NamedDirection, Treatment]]
    ) -> list[TreatmentOutcome]:
        """Outcomes of treatments with directions, in order."""
        plain, folder = self.untouched(model, half), self.folder(model.role, half)
        treated = [Treated(f"{source.name} {source.contrast}".strip(), source.units, t) for source, t in pairs]
        found = run_treatments(self.layers, model, treated, half, folder, self.lab.progress)
        return [
            TreatmentOutcome(model.role, half.name, source, treatment, counts, plain)
            for (source, treatment), counts in zip(pairs, found, strict=True)
        ]

    @cached_property
    def controls(self) -> list[NamedDirection]:
        """Random directions of both kinds, other ones at every hook."""
        count, seed = self.controls_of_each_kind, self.lab.seed
        made: dict[str, dict[str, Tensor]] = {ISOTROPIC: {}, COVARIANCE: {}}
        for block, (hook, rows) in enumerate(self.lab.base_rows.items()):
            made[ISOTROPIC][hook] = isotropic_directions(rows.shape[1], count, seed + block).float()
            made[COVARIANCE][hook] = covariance_directions(rows, count, seed + block).float()
        return [
            NamedDirection(f"{kind} {number}", "", kind, {hook: units[number] for hook, units in by_hook.items()})
            for kind, by_hook in made.items()
            for number in range(count)
        ]

    def folder(self, name: str, half: QuestionSet) -> Path:
        """Where a model's answers to a set of questions are kept."""
        return self.lab.out.folder / "transcripts" / name / half.name
