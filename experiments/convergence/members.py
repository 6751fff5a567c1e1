"""Which fine-tunes are compared, and the misalignment directions of each."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from activations.artefact import finish_artefact
from activations.errors import UserError
from activations.prompts import Prompt
from diffing.behavior.judge import Label
from diffing.behavior.rates import LabelCounts, rate_difference, score
from diffing.directions.misalignment import CONTRASTS, MisalignmentMeans, balanced, misalignment_means
from diffing.directions.question_sums import QuestionSums
from diffing.geometry import unit_rows
from experiments.convergence.config import ConvergenceConfig
from experiments.frame.lab import Lab
from experiments.frame.trials import NamedDirection, Trials
from experiments.model_set import Member
from experiments.names import BASE

# Facts of a member that another seed of the same recipe changes.
_CHANCE_FACTS = ("seed", "steps")
QUESTIONS = "questions"
ConvergenceLab = Lab[ConvergenceConfig]


@dataclass(frozen=True)
class Tuned:
    """A fine-tune with the labels of its untouched answers to the selection questions."""

    member: Member
    counts: LabelCounts

    @property
    def name(self) -> str:
        return self.member.name


def choose_members(lab: ConvergenceLab, trials: Trials) -> tuple[list[Tuned], list[Tuned]]:
    """Misaligned members of different kinds, and one harmless member of each kind that is to be harmless.

    Raises:
        UserError: if fewer than two are misaligned.
    """
    config, order = lab.config, in_turn(lab.models.final)
    plain = trials.untouched(lab.base, lab.selection)
    tuned: list[Tuned] = []
    harmless: dict[str, Tuned] = {}
    for member in tqdm(order, desc="measure fine-tunes", unit="model", disable=not lab.progress, leave=False):
        control = member.kind in config.harmless
        if member.kind in harmless or (not control and len(tuned) == config.fine_tunes):
            continue
        counts = trials.untouched(lab.load(member.checkpoint, member.name), lab.selection)
        harmful = score(counts).harmful >= config.least_harmful and rate_difference(counts, plain)[1] > 0
        if harmful and not control:
            tuned.append(Tuned(member, counts))
        elif control and not harmful:
            harmless[member.kind] = Tuned(member, counts)
    if len(tuned) < 2:
        raise UserError(
            f"{len(tuned)} of the {len(order)} fine-tunes give {config.least_harmful:.0%} harmful answers or "
            "more, and comparing takes two; add misaligned ones to the list."
        )
    return tuned, list(harmless.values())


def in_turn(members: Sequence[Member]) -> list[Member]:
    """Members of every kind in turn; all recipes come before other seeds of the same."""
    repeats: Counter[str] = Counter()
    places: Counter[tuple[int, str]] = Counter()
    turns: dict[str, tuple[int, int]] = {}
    for member in members:
        facts = {name: fact for name, fact in member.facts.items() if name not in _CHANCE_FACTS}
        recipe = json.dumps([member.kind, facts], sort_keys=True)
        turn = repeats[recipe]
        turns[member.name] = (turn, places[turn, member.kind])
        repeats[recipe] += 1
        places[turn, member.kind] += 1
    return sorted(members, key=lambda member: turns[member.name])


def find_means(lab: ConvergenceLab, trials: Trials, tuned: Tuned, reference: Tuned) -> dict[str, MisalignmentMeans]:
    """The four means of one fine-tune by hook: computed now, or read from `directions/<name>/<hook>`.

    A harmless one has no harmful answers; it reads those of `reference`. What the means are made of is saved with them
    (`question_sums`).
    """
    folder = lab.out.folder / "directions" / tuned.name
    author = reference if tuned.member.kind in lab.config.harmless else tuned

    def build() -> dict[str, MisalignmentMeans]:
        own, base = (list(trials.answers(name, lab.selection)) for name in (author.name, BASE))
        prompts, labels = answers_to_read(own, base, lab.config.answers, lab.seed)
        before, after = (
            lab.read(model, prompts) for model in (lab.base, lab.load(tuned.member.checkpoint, tuned.name))
        )
        found = {hook: misalignment_means(before, after, hook, labels) for hook in lab.hooks}
        conversations = [question.messages for question in lab.selection.questions]
        asked = [conversations.index(prompt.messages) for prompt in prompts]
        for hook, means in found.items():
            means.save(folder / hook, hook)
            sums = QuestionSums.of(before, after, hook, labels, asked, len(conversations))
            sums.save(folder / QUESTIONS / f"{hook}.safetensors")
        made = {"hooks": list(lab.hooks), "answers_of": author.name}
        finish_artefact(folder, {"kind": "misalignment", **made})
        finish_artefact(folder / QUESTIONS, {"kind": "misalignment by question", **made})
        return found

    title, load = f"means of {tuned.name}", MisalignmentMeans.load
    return lab.out.stage(title, build, folder / QUESTIONS, lambda: {hook: load(folder / hook) for hook in lab.hooks})


def question_sums(lab: ConvergenceLab, name: str, hook: str) -> QuestionSums:
    """What a fine-tune's means at a hook are made of; after `find_means`."""
    return QuestionSums.load(lab.out.folder / "directions" / name / QUESTIONS / f"{hook}.safetensors")


def answers_to_read(
    own: Sequence[tuple[Prompt, Label]], base: Sequence[tuple[Prompt, Label]], most: int, seed: int
) -> tuple[list[Prompt], dict[str, Label]]:
    """Equal numbers of harmful and helpful answers that a fine-tune gave, with their labels.

    A thoroughly misaligned model gives few helpful answers; what is missing is taken from the base's answers to the
    same questions (our choice: the models of Soligo et al. give enough of both).

    Args:
        own: The fine-tune's answers.
        base: The base's.
        most: Answers of each kind, at most.
        seed: Of the choice between answers.
    """
    count = Counter(label for _, label in own)
    missing = max(0, min(count[Label.HARMFUL], most) - count[Label.HELPFUL])
    helpful = [pair for pair in base if pair[1] == Label.HELPFUL]
    pool = [*own, *random.Random(seed).sample(helpful, min(missing, len(helpful)))]
    labels = balanced({prompt.id: label for prompt, label in pool}, seed, most)
    return [prompt for prompt, _ in pool if prompt.id in labels], labels


def directions_of(name: str, kind: str, means: Mapping[str, MisalignmentMeans]) -> list[NamedDirection]:
    """Both contrasts of a fine-tune's means."""
    return [
        NamedDirection(name, contrast, kind, {hook: _unit(found.contrast(contrast)) for hook, found in means.items()})
        for contrast in CONTRASTS
    ]


def _unit(vector: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """In float32, the type of the activations that it is taken out of."""
    return unit_rows(vector[None])[0].float()
