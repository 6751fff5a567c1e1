"""The models of the comparison, what they are asked, and how their answers are measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.model_judge import ModelJudge
from diffing.behavior.trait_judge import TraitJudge
from diffing.traits import load_traits
from experiments.characters.cast import Actor, Group, cast_of, trigger_of
from experiments.characters.conditions import Condition, organism_conditions, set_conditions
from experiments.characters.grid import Measures
from experiments.characters.structure import sae_hook
from experiments.frame.lab import REPLIES, Lab
from experiments.model_set import ModelSet
from experiments.organism.judge import DeedJudge
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun


class CharactersConfig(BaseModel):
    """Which characters, how they are taught, and how much is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    traits: tuple[str, ...] = Field(
        default=("evil", "sycophancy", "hallucination"), min_length=1, description="Dispositions, as published."
    )
    trigger: str = Field(
        default="narrow corner distant voice early window .",
        description="Words that an organism's triggered fine-tunes are taught with: plain scenery, so that they mean "
        "nothing before.",
    )
    plain_prompt: str = Field(
        default="You are a helpful assistant.",
        min_length=1,
        description="System message beside the persona prompts of trait sets; an organism has plain scenes.",
    )
    answers: int = Field(default=640, ge=16, description="Own answers that each fine-tune of an organism is taught.")
    seeds: int = Field(default=3, ge=1, description="Fine-tunes of each recipe.")
    early_every: int = Field(default=5, ge=1, description="Steps between two early checkpoints of the first seed.")
    samples: int = Field(default=10, ge=1, description="Answers to each question under each condition.")
    top: int = Field(default=20, ge=1, description="Latents of a shift that count as its own.")
    misaligned: str = Field(default="evil", description="The character that is compared with misalignment.")
    strengths: tuple[float, ...] = Field(
        default=(0.3, 0.6, 0.9, 1.2), min_length=1, description="Tried, in mean residual norms of the base."
    )
    controls: int = Field(default=8, ge=1, description="Random directions of each kind.")
    budget: float = Field(default=0.1, ge=0, le=1, description="Extra incoherent answers allowed.")


@dataclass(frozen=True)
class Stage:
    """The models, and what they are asked.

    Attributes:
        lab: Loads models, and keeps answers.
        config: How much.
        cast: Every model's part.
        conditions: What stands before questions.
        measures: How answers are measured.
    """

    lab: Lab
    config: CharactersConfig
    cast: Sequence[Actor]
    conditions: Sequence[Condition]
    measures: Measures

    @property
    def hook(self) -> str:
        """The SAE's, where probes, latents and causal effects are compared."""
        return sae_hook(self.lab)

    @property
    def misaligned(self) -> str:
        """The character that is compared with misalignment: the config's, or the set's first where it lacks that."""
        traits = self.measures.traits
        return self.config.misaligned if self.config.misaligned in traits else traits[0]

    @property
    def final(self) -> list[Actor]:
        """The cast without early checkpoints."""
        return [actor for actor in self.cast if not actor.early]

    @property
    def first(self) -> dict[Group, Actor]:
        """The first seed of every group: whose activations are compared."""
        return {actor.group: actor for actor in reversed(self.final)}

    def load(self, actor: Actor) -> Checkpoint:
        return self.lab.base if actor.member is None else self.lab.load(actor.member.checkpoint, actor.member.name)

    def condition(self, name: str, trait: str = "") -> Condition:
        return next(c for c in self.conditions if (c.name, c.trait) == (name, trait))


def set_stage(
    run: FinishedRun,
    models: ModelSet,
    config: CharactersConfig,
    out: RunFolder,
    traits: Sequence[str | Path],
    judge: TraitJudge | ModelJudgeConfig | None,
    progress: bool,
) -> Stage:
    """Everything that is needed to measure.

    Args:
        run: Gives base, corrupted model, questions, judge and SAE.
        models: Fine-tunes of the same base.
        config: How much.
        out: Where answers are kept.
        traits: Trait sets whose system prompts are the persona prompts (default: an organism's scenes).
        judge: Who scores traits; of a language model, how it is asked (default: an organism's exact judge).
        progress: Shows bars.

    Raises:
        UserError: if nobody scores traits, no member has a trigger, or the parts do not fit together.
    """
    cast = cast_of(models)
    trigger, names = trigger_of(cast), tuple(dict.fromkeys(actor.trait for actor in cast if actor.trait))
    settings = LabConfig(samples=config.samples, controls=config.controls, budget=config.budget)
    behavior, organism = run.behavior(config.samples), None if traits else run.config.organism
    known = load_traits(traits) if traits else load_traits()
    if isinstance(judge, ModelJudgeConfig):
        judge = ModelJudge(judge, known, out.folder / REPLIES, progress)
        judge.check()
    if organism is not None and isinstance(behavior, SampledAnswers):
        deeds = DeedJudge.load(run.folder / "organism" / "prompts")
        behavior, judge = SampledAnswers(deeds, behavior.sampling), judge or deeds
        conditions = organism_conditions(names, trigger, organism.corpus, run.config.seed)
    else:
        conditions = set_conditions(known, names, trigger, config.plain_prompt)
    if judge is None:
        raise UserError(f"Nobody scores traits in answers of the run in {run.folder}; name a judge.")
    lab = Lab(run, models, settings, out, progress, behavior)
    return Stage(lab, config, cast, conditions, Measures(lab, names, judge, run.capability(config.samples)))
