"""The models of the comparison, what they are asked, and how their answers are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.trait_judge import TraitJudge
from diffing.traits import load_traits
from experiments.characters.cast import Actor, Group, cast_of, organism_cast, trigger_of
from experiments.characters.conditions import Condition, organism_conditions, set_conditions
from experiments.characters.config import CharactersConfig
from experiments.characters.grid import Scoring
from experiments.frame.lab import Lab
from experiments.frame.trials import Trials
from experiments.model_set import ModelSet
from experiments.organism.fine_tunes import make_fine_tunes
from experiments.organism.judge import DeedJudge
from experiments.run.config import ORGANISM_PROMPTS

MODELS = "models"


@dataclass(frozen=True)
class Comparison:
    """The models, and what they are asked.

    Attributes:
        lab: Loads models.
        cast: Every model's part.
        conditions: What stands before questions.
        scoring: How answers are scored.
    """

    lab: Lab[CharactersConfig]
    cast: Sequence[Actor]
    conditions: Sequence[Condition]
    scoring: Scoring

    @property
    def trials(self) -> Trials:
        """Asks and treats models."""
        return self.scoring.trials

    @property
    def misaligned(self) -> str:
        """The character that is compared with misalignment: the config's, or the set's first where it lacks that."""
        traits, wanted = self.scoring.traits, self.lab.config.misaligned
        return wanted if wanted in traits else traits[0]

    @cached_property
    def first(self) -> Mapping[Group, Actor]:
        """The first seed of every group: whose activations are compared."""
        return {actor.group: actor for actor in reversed(self.cast) if not actor.early}

    def load(self, actor: Actor) -> Checkpoint:
        """An actor's model."""
        return self.lab.base if actor.member is None else self.lab.load(actor.member.checkpoint, actor.member.name)

    def condition(self, name: str, trait: str = "") -> Condition:
        """The condition of this name and trait."""
        return next(c for c in self.conditions if (c.name, c.trait) == (name, trait))


def prepare(lab: Lab[CharactersConfig]) -> Comparison:
    """Everything that is needed to measure; an organism's own fine-tunes are made where none are given.

    Without trait sets an organism is asked after scenes of its own and its judge counts deeds, in whatever tone they
    are told; with them persona prompts are the traits' system prompts, and the run's judge counts.

    Raises:
        UserError: if nobody scores traits, no member has a trigger, or the parts do not fit together.
    """
    organism = None if lab.inputs.traits else lab.run.config.organism
    trials, judge = _of_deeds(lab) if organism is not None else _as_the_run(lab)
    cast = cast_of(lab.models if lab.inputs.models is not None else organism_set(lab))
    trigger, traits = trigger_of(cast), tuple(dict.fromkeys(actor.trait for actor in cast if actor.trait))
    if organism is not None:
        conditions = organism_conditions(traits, trigger, organism.corpus, lab.seed)
    else:
        known = load_traits(lab.inputs.traits) if lab.inputs.traits else load_traits()
        conditions = set_conditions(known, traits, trigger, lab.config.plain_prompt)
    return Comparison(lab, cast, conditions, Scoring(trials, traits, judge))


def organism_set(lab: Lab[CharactersConfig]) -> ModelSet:
    """The organism's fine-tunes, made in the result's folder.

    Raises:
        UserError: if the run has no organism.
    """
    if lab.run.config.organism is None:
        raise UserError(
            f"The run in {lab.run.folder} has no organism whose fine-tunes could be made; list fine-tunes of its base "
            "with --models."
        )
    recipes = organism_cast(lab.organism.domains, lab.config)
    return make_fine_tunes(lab.organism.folder, lab.out.folder / MODELS, recipes, progress=lab.progress)


def _of_deeds(lab: Lab[CharactersConfig]) -> tuple[Trials, TraitJudge]:
    """A language model scores traits where one is named."""
    deeds, behavior = DeedJudge.load(lab.run.folder / ORGANISM_PROMPTS), lab.behavior(lab.config.samples)
    assert isinstance(behavior, SampledAnswers)
    trials = Trials(lab, SampledAnswers(deeds, behavior.sampling), lab.config.controls)
    return trials, deeds if lab.inputs.judge is None else lab.require_trait_judge()


def _as_the_run(lab: Lab[CharactersConfig]) -> tuple[Trials, TraitJudge]:
    return lab.trials(lab.config.samples, lab.config.controls), lab.require_trait_judge()
