"""What experiments on several models work with: the base, its layers, random directions, and answers that are kept."""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from activations.artefact import read_json, write_json
from activations.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, require_same_tokenizer
from activations.errors import UserError
from activations.harvest import LiveActivations
from activations.memory import InMemory
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES, Prompt, tokenize_prompts
from diffing.behavior.judge import Label
from diffing.behavior.measure import Behavior, Record, SampledAnswers
from diffing.behavior.rates import BehaviorScores, LabelCounts, score
from diffing.directions.random_directions import covariance_directions, isotropic_directions
from diffing.statistics.intervals import Estimate
from diffing.steering.arms import untouched
from diffing.steering.experiment import Half, run_cells
from diffing.steering.transfer import Direction, Layers, Treated, Treatment, run_treatments, share_removed
from experiments.finished_run import FinishedRun
from experiments.model_set import ModelSet
from experiments.results import BASE
from experiments.run_folder import RunFolder

ISOTROPIC, COVARIANCE = "isotropic", "covariance"


class LabConfig(BaseModel):
    """How much is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=5, ge=1, description="Answers to each question.")
    budget: float = Field(default=0.1, ge=0, le=1, description="Extra incoherent answers allowed.")
    controls: int = Field(default=8, ge=1, description="Random directions of each kind.")


Settings = TypeVar("Settings", bound=LabConfig)


@dataclass(frozen=True)
class Source:
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
class Outcome:
    """What one treatment with one direction did to one model's answers to one half of the questions."""

    model: str
    half: str
    source: Source
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


class Lab(Generic[Settings]):
    """The base, what the run measured with, and where everything goes.

    Args:
        run: Gives questions, judge and SAE.
        models: Fine-tunes of the run's base.
        config: How much.
        out: Where answers are kept.
        progress: Shows bars.
        behavior: How behaviour is measured, treated and untouched (default: as the run did).

    Raises:
        UserError: if the set's base is not the run's, a member is called like it, the run judged no sampled answers
            to conversations, or answers of another base are kept.
    """

    def __init__(
        self,
        run: FinishedRun,
        models: ModelSet,
        config: Settings,
        out: RunFolder,
        progress: bool,
        behavior: Behavior | None = None,
    ) -> None:
        self.run, self.config, self.out, self.progress = run, config, out, progress
        self.reporting, behavior = run.reporting(), behavior or run.behavior(config.samples)
        selection = run.config.prompts.selection
        if not isinstance(behavior, SampledAnswers) or selection is None:
            raise UserError(f"The run in {run.folder} sampled no answers; take one whose judge labels sampled answers.")
        self.selection = Half("selection", load_prompts(selection))
        if any(question.text is not None for question in self.selection.questions):
            raise UserError(f"{selection} holds plain text, which sampled answers cannot follow; give conversations.")
        self.base = load_checkpoint(models.base.placed(run.config.device, run.config.dtype), BASE)
        self.run.require_base(self.base)
        self._require_same_model(self.base)
        models.require_not_called(BASE, "the model that all are compared with")
        self.hooks = tuple(f"blocks.{block}.hook_resid_post" for block in range(self.base.layers))
        reading = self.read(self.base, run.ranking_prompts())
        self.sae = run.sae()
        self.layers = Layers.of(reading, self.sae, behavior)
        self.rows = {hook: reading.read(hook, PROMPT_ROLES) for hook in self.hooks}

    @property
    def toxic(self) -> int | None:
        """The run's toxic latent, if it found one."""
        found = self.run.summary.get("toxic_latent")
        return None if found is None else int(found["latent"])

    def load(self, checkpoint: CheckpointConfig, name: str) -> Checkpoint:
        """A fine-tune of the base.

        Raises:
            UserError: if it has another tokenizer, or answers of another model of this name are kept.
        """
        gc.collect()  # a bridge refers to itself; this one needs the memory of the one before
        model = load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)
        require_same_tokenizer(self.base, model)
        self._require_same_model(model)
        return model

    def read(self, model: Checkpoint, prompts: Sequence[Prompt]) -> InMemory:
        """Activations on prompts, with their answers if they have any, at every hook."""
        settings = self.run.harvesting().model_copy(update={"hooks": self.hooks})
        tokens = tokenize_prompts(prompts, model.tokenizer, self.run.config.max_length)
        return InMemory.copy_of(LiveActivations(model, tokens, settings), progress=False)

    def untouched(self, model: Checkpoint, half: Half, behavior: Behavior | None = None) -> LabelCounts:
        """Label counts of a model as it is; `behavior` in place of the run's."""
        transcripts = self._transcripts(model.role, half) / "untouched.jsonl"
        transcripts.parent.mkdir(parents=True, exist_ok=True)
        bench = next(iter(self.layers.benches.values()))
        bench = bench if behavior is None else replace(bench, behavior=behavior)
        return run_cells(bench, model, [untouched(model.d_model)], half, transcripts, progress=False)[0].counts

    def records(self, name: str, half: Half) -> list[Record]:
        """What an untouched model said to each question, and the labels; after `untouched`."""
        transcripts = self._transcripts(name, half) / "untouched.jsonl"
        found = map(json.loads, transcripts.read_text(encoding="utf-8").splitlines())
        # A call that was killed may have left some questions twice.
        by_question = {record["question"]: record for record in found}
        return [by_question[question.id] for question in half.questions]

    def answers(self, name: str, half: Half) -> Iterator[tuple[Prompt, Label]]:
        """The same as answered questions, each under an id of its own, with their labels."""
        for question, record in zip(half.questions, self.records(name, half), strict=True):
            for place, (text, label) in enumerate(zip(record["answers"], record["labels"], strict=True)):
                yield replace(question, id=f"{question.id} ({name} {place})", answer=text), Label(label)

    def treat(self, model: Checkpoint, half: Half, pairs: Sequence[tuple[Source, Treatment]]) -> list[Outcome]:
        """Outcomes of treatments with directions, in order."""
        plain, folder = self.untouched(model, half), self._transcripts(model.role, half)
        treated = [Treated(f"{source.name} {source.contrast}".strip(), source.units, t) for source, t in pairs]
        found = run_treatments(self.layers, model, treated, half, folder, self.progress)
        return [
            Outcome(model.role, half.name, source, treatment, counts, plain)
            for (source, treatment), counts in zip(pairs, found, strict=True)
        ]

    @cached_property
    def controls(self) -> list[Source]:
        """Random directions of both kinds, other ones at every hook."""
        count, seed = self.config.controls, self.run.config.seed
        made: dict[str, dict[str, Tensor]] = {ISOTROPIC: {}, COVARIANCE: {}}
        for block, (hook, rows) in enumerate(self.rows.items()):
            made[ISOTROPIC][hook] = isotropic_directions(rows.shape[1], count, seed + block).float()
            made[COVARIANCE][hook] = covariance_directions(rows, count, seed + block).float()
        return [
            Source(f"{kind} {number}", "", kind, {hook: units[number] for hook, units in by_hook.items()})
            for kind, by_hook in made.items()
            for number in range(count)
        ]

    def _transcripts(self, name: str, half: Half) -> Path:
        return self.out.folder / "transcripts" / name / half.name

    def _require_same_model(self, model: Checkpoint) -> None:
        """Answers that an earlier call left under a model's name are this model's."""
        kept = self.out.folder / "transcripts" / model.role / "model.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"fingerprint": model.fingerprint})
        elif read_json(kept)["fingerprint"] != model.fingerprint:
            raise UserError(
                f"{self.out.folder} holds answers of another model called {model.role}; choose another --out, rename "
                "the member, or --overwrite."
            )
