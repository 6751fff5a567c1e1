"""Which contrastive prompts show a trait, and who scores the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int

from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from diffing.behavior.config import ModelJudgeConfig, SamplingConfig
from diffing.behavior.model_judge import ModelJudge
from diffing.traits import TraitSet, contrastive_prompts, load_traits
from diffing.traits.trait_set import Valence
from experiments.organism.judge import OrganismJudge
from experiments.organism.splits import HIGH, LOW, TRAITS
from experiments.organism.world import World
from experiments.run.finished_run import FinishedRun

REPLIES = "judge.jsonl"


@runtime_checkable
class TraitJudge(Protocol):
    """Scores answers: an organism's exact judge, or a language model behind an API (`ModelJudge`)."""

    def trait_scores(
        self, trait: str, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Float64[np.ndarray, "answer"]:
        """How much of the trait each answer shows, 0-100; NaN where the answer is incoherent, or has no score."""
        ...


@runtime_checkable
class CoherenceJudge(TraitJudge, Protocol):
    """A judge of traits that tells answers without a score from incoherent ones."""

    def coherence_scores(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float64[np.ndarray, "answer"]:
        """How coherent each answer is, 0-100; NaN where the judge gives no score."""
        ...


@dataclass(frozen=True)
class TraitPrompts:
    """Prompts for both poles of a trait.

    Attributes:
        name: Of the trait.
        valence: As judged in its trait set; None where the source has none.
        positive, negative: Index-matched: the i-th of both ask the same question.
        question: Number of the question of each pair. The question is the unit of replication, so pairs of one question
            (several pairs of system prompts) are averaged first.
    """

    name: str
    valence: Valence | None
    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    question: Int[np.ndarray, "pair"]


def organism_traits(prompts: Path) -> list[TraitPrompts]:
    """The traits of an organism, from its `prompts/` folder; valences are those of the trait sets of the same names.

    Raises:
        UserError: if the organism was made before it had traits.
    """
    folder, known = prompts / TRAITS, load_traits()
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: the organism was made by a version without traits; make it again, or name trait "
            "sets with --traits."
        )
    found = []
    for trait in World.load().traits:
        positive, negative = (tuple(load_prompts(folder / f"{trait}_{pole}.jsonl")) for pole in (HIGH, LOW))
        if len(positive) != len(negative):
            raise UserError(f"{folder}: {trait} has {len(positive)} and {len(negative)} prompts; make it again.")
        found.append(TraitPrompts(trait, known[trait].valence, positive, negative, np.arange(len(positive))))
    return found


def set_traits(traits: TraitSet) -> list[TraitPrompts]:
    """The traits of a trait set: every pair of system prompts with every extraction question."""
    found = []
    for trait in traits.traits:
        positive, negative = contrastive_prompts(trait)
        question = np.arange(len(positive)) % len(trait.extraction_questions)
        found.append(TraitPrompts(trait.name, trait.valence, tuple(positive), tuple(negative), question))
    return found


def traits_of(
    run: FinishedRun,
    sources: Sequence[str | Path],
    judge: TraitJudge | ModelJudgeConfig | None,
    out: Path,
    progress: bool = True,
) -> tuple[list[TraitPrompts], TraitJudge | None]:
    """The traits to extract in a run's models, and their judge.

    Args:
        run: An organism has traits and a judge of its own.
        sources: Trait sets by name or file instead (`load_traits`).
        judge: Who judges; of a language model, how it is asked. None: an organism's exact judge of its own traits;
            nobody judges answers to trait sets, so they are taken as they come.
        out: Folder in which a language model's replies are kept, in `judge.jsonl`.
        progress: Shows bars while a language model judges.

    Raises:
        UserError: as `organism_traits` and `load_traits`.
    """
    known = load_traits(sources) if sources else load_traits()
    if isinstance(judge, ModelJudgeConfig):
        judge = ModelJudge(judge, known, out / REPLIES, progress)
    if sources or run.config.organism is None:
        return set_traits(known), judge
    prompts = run.folder / "organism" / "prompts"
    return organism_traits(prompts), judge or OrganismJudge.load(prompts)


def answer_sampling(run: FinishedRun, samples: int, max_new_tokens: int | None) -> SamplingConfig:
    """How answers that show traits are sampled.

    Args:
        run: Its seed.
        samples: Answers to each prompt.
        max_new_tokens: None takes as many as the run samples, or 200.
    """
    steering = run.config.steering
    tokens = max_new_tokens or (steering.sampling.max_new_tokens if steering else 200)
    return SamplingConfig(samples=samples, max_new_tokens=tokens, seed=run.config.seed)
