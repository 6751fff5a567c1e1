"""One model's side of the personality space: its answers to contrastive prompts, and its activations on them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64, Int
from tqdm import tqdm

from activations.artefact import publish
from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.harvesting import LiveActivations, compute_shard, plan_shards
from activations.memory import InMemory
from activations.prompts import Prompt
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.model_judge import COHERENT_FROM
from diffing.behavior.sampling import sample_answers
from diffing.behavior.trait_judge import CoherenceJudge, TraitJudge
from diffing.personality.config import ANSWERS, TraitPositions
from diffing.positions import Positions
from diffing.ranking.activation_means import activation_means
from diffing.traits import judged_pairs
from diffing.traits.pairs import JudgedAnswers
from diffing.traits.prompts import TraitPrompts

# Positions whose activations at all hooks are in memory at once.
_POSITIONS_AT_ONCE = 8192
Means = dict[tuple[Positions, str], Float64[np.ndarray, "prompt d_model"]]


@dataclass(frozen=True)
class PairAnswers:
    """A model's answers to the prompts of a trait.

    Attributes:
        positive, negative: Texts as [pair][sample].
        kept: Whether the i-th answers of a pair show the contrast.
        counts: How many answers had which outcome (`JudgedPairs`); only "kept" where nobody judges.
    """

    positive: Sequence[Sequence[str]]
    negative: Sequence[Sequence[str]]
    kept: Bool[np.ndarray, "pair sample"]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class QuestionMeans:
    """Mean activations of a trait's two poles at one hook and at some positions.

    Attributes:
        positive, negative: The i-th rows belong to the same question; NaN where none of its answers was kept.
    """

    positive: Float64[np.ndarray, "question d_model"]
    negative: Float64[np.ndarray, "question d_model"]

    @property
    def differences(self) -> Float64[np.ndarray, "question d_model"]:
        return self.positive - self.negative

    @property
    def questions(self) -> int:
        """Questions with both poles."""
        return int((~np.isnan(self.differences).any(1)).sum())


def write_answers(
    checkpoint: Checkpoint, traits: Sequence[TraitPrompts], sampling: SamplingConfig, path: Path, progress: bool = True
) -> None:
    """Samples a model's answers to every prompt of both poles of all traits; nothing is done where the file exists.

    Args:
        checkpoint: Who answers.
        traits: What is asked.
        sampling: How to sample.
        path: JSONL to write.
        progress: Shows a bar.
    """
    if path.exists():
        return
    prompts = [prompt for trait in traits for prompt in (*trait.positive, *trait.negative)]
    total = len(prompts) * sampling.samples
    with tqdm(total=total, desc=f"answers {checkpoint.role}", disable=not progress, leave=False) as bar:
        (sampled,) = sample_answers(checkpoint, _tokens(checkpoint, prompts), sampling, advance=bar.update)
    rows = ({"id": prompt.id, "answers": texts} for prompt, texts in zip(prompts, sampled, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    publish(temporary, path)


def judged_answers(path: Path, traits: Sequence[TraitPrompts], judge: TraitJudge | None) -> dict[str, PairAnswers]:
    """Trait -> the answers that `write_answers` wrote, and which pairs show the contrast (thresholds: `judged_pairs`).

    Without a judge, all pairs are kept but those with an empty answer, which has no tokens to read.
    """
    texts = {row["id"]: row["answers"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    found = {}
    for trait in traits:
        positive, negative = ([texts[prompt.id] for prompt in pole] for pole in (trait.positive, trait.negative))
        found[trait.name] = PairAnswers(positive, negative, *_kept(trait, positive, negative, judge))
    return found


def trait_means(
    checkpoint: Checkpoint,
    trait: TraitPrompts,
    answers: Mapping[TraitPositions, PairAnswers],
    positions: Sequence[TraitPositions],
    harvesting: HarvestConfig,
) -> dict[tuple[TraitPositions, str], QuestionMeans]:
    """The mean activations of a trait's questions, by positions and hook; every text goes through the model once.

    Prompts are all read, as no answer is in them. Of answers the kept pairs are read (teacher forcing); answers to one
    question are averaged first, so that every question counts alike however many of its answers were kept (our choice;
    published is the mean over all answers).

    Args:
        checkpoint: Whose activations.
        trait: The prompts.
        answers: The answers to them, for each kind of answers that is asked for.
        positions: Tokens that are averaged.
        harvesting: At which hooks, and how much at once.
    """
    found: dict[tuple[TraitPositions, str], QuestionMeans] = {}
    if before := [at for at in positions if at not in ANSWERS]:
        both = _tokens(checkpoint, [*trait.positive, *trait.negative])
        means = prompt_means(checkpoint, both, cast(list[Positions], before), harvesting)
        found |= {
            (cast(TraitPositions, at), hook): _by_question(rows, trait.question) for (at, hook), rows in means.items()
        }
    read: dict[int, dict[str, QuestionMeans]] = {}
    for at in positions:
        if at not in answers:
            continue
        given = answers[at]
        # The base's own answers are the base's answers, too.
        if id(given) not in read:
            read[id(given)] = _answer_means(checkpoint, trait, given, harvesting)
        found |= {(at, hook): means for hook, means in read[id(given)].items()}
    return found


def _answer_means(
    checkpoint: Checkpoint, trait: TraitPrompts, answers: PairAnswers, harvesting: HarvestConfig
) -> dict[str, QuestionMeans]:
    """Hook -> means over the tokens of kept answers; questions without a kept pair are NaN."""
    pair, sample = np.nonzero(answers.kept)
    number = int(trait.question.max()) + 1
    if not len(pair):
        nothing = np.full((number, checkpoint.d_model), np.nan)
        return {hook: QuestionMeans(nothing, nothing) for hook in harvesting.hooks}
    poles = ((trait.positive, answers.positive), (trait.negative, answers.negative))
    read = [prompt for asked, texts in poles for prompt in _answered(asked, texts, pair, sample)]
    means = prompt_means(checkpoint, _tokens(checkpoint, read), ("answer",), harvesting)
    return {hook: _by_question(rows, trait.question[pair], number) for (_, hook), rows in means.items()}


def prompt_means(
    checkpoint: Checkpoint, tokens: TokenBatch, positions: Sequence[Positions], harvesting: HarvestConfig
) -> Means:
    """Mean activation of every prompt at every hook, all hooks in one forward pass, a few thousand tokens at a time."""
    parts: list[Means] = []
    for indices in _parts(tokens):
        part = tokens.select(indices)
        live = LiveActivations(checkpoint, part, harvesting)
        shards = list(plan_shards(part, harvesting))
        computed = [compute_shard(checkpoint, shard, harvesting) for shard in shards]
        rows = {hook: [shard[hook] for shard in computed] for hook in harvesting.hooks}
        held = InMemory(live.name, live.config, part.ids, [shard.index for shard in shards], rows)
        parts.append({(at, hook): activation_means(held, hook, at) for at in positions for hook in harvesting.hooks})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _tokens(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> TokenBatch:
    return tokenize_prompts(prompts, checkpoint.tokenizer)


def _parts(tokens: TokenBatch) -> list[list[int]]:
    """Indices of prompts, a few thousand tokens at a time."""
    place = np.cumsum([len(one) for one in tokens.tokens]) // _POSITIONS_AT_ONCE
    return [np.flatnonzero(place == number).tolist() for number in np.unique(place)]


def _answered(
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    pair: Int[np.ndarray, "kept"],
    sample: Int[np.ndarray, "kept"],
) -> list[Prompt]:
    chosen = zip(pair.tolist(), sample.tolist(), strict=True)
    return [replace(prompts[i], id=f"{prompts[i].id} #{j}", answer=texts[i][j]) for i, j in chosen]


def _by_question(
    rows: Float64[np.ndarray, "prompt d_model"], question: Int[np.ndarray, "pair"], number: int | None = None
) -> QuestionMeans:
    """Means over the pairs of each question; the first half of the rows are the positive prompts of all pairs.

    A pair in which either has no such tokens is left out.
    """
    poles = np.split(rows, 2)
    missing = np.isnan(poles[0] + poles[1]).any(1)
    numbers = np.arange(int(question.max()) + 1 if number is None else number)
    member = np.equal.outer(question, numbers).astype(np.float64)
    member[missing] = 0
    with np.errstate(invalid="ignore"):
        positive, negative = (member.T @ np.nan_to_num(pole) / member.sum(0)[:, None] for pole in poles)
    return QuestionMeans(positive, negative)


def _kept(
    trait: TraitPrompts, positive: Sequence[Sequence[str]], negative: Sequence[Sequence[str]], judge: TraitJudge | None
) -> tuple[Bool[np.ndarray, "pair sample"], Mapping[str, int]]:
    spoken = np.logical_and(_spoken(positive), _spoken(negative))
    if judge is None:
        return spoken, {"kept": int(spoken.sum()), "empty": int((~spoken).sum())}
    judged = judged_pairs(
        _scores(trait.name, trait.positive, positive, judge), _scores(trait.name, trait.negative, negative, judge)
    )
    kept = np.zeros(spoken.size, dtype=bool)
    kept[judged.kept] = True
    return kept.reshape(spoken.shape), judged.counts


def _spoken(answers: Sequence[Sequence[str]]) -> Bool[np.ndarray, "pair sample"]:
    return np.array([[bool(text) for text in texts] for texts in answers])


def _scores(trait: str, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]], judge: TraitJudge) -> JudgedAnswers:
    """Scores of trait and coherence as `judged_pairs` takes them: NaN only where the judge gives none."""
    asked = [prompt for prompt, given in zip(prompts, texts, strict=True) for _ in given]
    answers = [text for given in texts for text in given]
    scores = judge.trait_scores(trait, asked, answers)
    if isinstance(judge, CoherenceJudge):
        coherence = judge.coherence_scores(asked, answers)
    else:
        coherence = np.where(np.isnan(scores), 0.0, 100.0)
    return JudgedAnswers(np.where(coherence < COHERENT_FROM, 0.0, scores), coherence)
