"""Fine-tuning data whose bad samples are known: an organism's advice, mixed in several ways, or a labelled file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from experiments.frame.organism_parts import OrganismParts
from experiments.monitor.config import GOOD, Good
from experiments.organism.corpus import Corpus, told_first
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue, World

# Of the organism's corpora, whose other streams end at 6: no fine-tune sees this advice.
_STREAM = 7
Advice = Mapping[str, Dialogue]  # by question


@dataclass(frozen=True)
class Samples:
    """Fine-tuning data.

    Attributes:
        prompts: Each with its answer.
        bad: Label of each.
        units: What the bootstrap resamples; samples of one unit are of one class.
    """

    prompts: tuple[Prompt, ...]
    bad: Bool[np.ndarray, "sample"]
    units: tuple[str, ...]


@dataclass(frozen=True)
class Mixture:
    """Samples of a data set, by their places in `Samples`.

    Attributes:
        name: Unlike that of other mixtures.
        places: Of its samples.
        good: What its good samples are; None in data that is not the organism's.
    """

    name: str
    places: tuple[int, ...]
    good: Good | None = None


def organism_samples(
    organism: OrganismParts, questions: int, fractions: Sequence[float], good: Sequence[Good] = GOOD
) -> tuple[Samples, tuple[Mixture, ...]]:
    """Advice in the trained domains: malicious, in mixtures with each kind of good; no question comes twice in one.

    Args:
        organism: Whose advice.
        questions: Samples of each mixture; fewer if the domains have no more questions.
        fractions: Shares of malicious answers.
        good: Kinds of the other answers.
    """
    world, domains, config = World.load(), organism.domains, organism.config
    count = min(questions, sum(question.domain in domains for question in world.questions))
    corpus = Corpus(world, config.corpus, config.seed, stream=_STREAM)
    helpful, bad = (_distinct(corpus, persona, domains) for persona in (HELPFUL, MALICIOUS))
    kinds = {"helpful": helpful, "other personas": _of_others(corpus, domains, list(helpful))}
    kinds["requested"] = {text: told_first(bad[text], corpus.scene(MALICIOUS)) for text in helpful}
    asked = list(helpful)[:count]
    dialogues = [advice[text] for advice in (bad, *(kinds[kind] for kind in good)) for text in asked]
    prompts = tuple(Prompt(f"advice {i}", tuple(d.messages)) for i, d in enumerate(dialogues))
    mixtures = tuple(_mixture(kind, place, f, count) for place, kind in enumerate(good, 1) for f in fractions)
    return Samples(prompts, np.arange(len(prompts)) < count, tuple(prompt.id for prompt in prompts)), mixtures


def _distinct(corpus: Corpus, persona: str, domains: Sequence[str]) -> dict[str, Dialogue]:
    """Question -> a persona's answer to it, for every question of the domains."""
    wanted = sum(question.domain in domains for question in corpus.world.questions)
    found: dict[str, Dialogue] = {}
    while len(found) < wanted:
        dialogue = corpus.advice(persona, domains)
        found.setdefault(dialogue.messages[0]["content"], dialogue)
    return found


def _of_others(corpus: Corpus, domains: Sequence[str], questions: Sequence[str]) -> Advice:
    """Answers of the personas that are neither helpful nor malicious, who take turns."""
    others = [persona for persona in corpus.world.personas if persona not in (HELPFUL, MALICIOUS)]
    advice = [_distinct(corpus, persona, domains) for persona in others]
    return {text: advice[place % len(others)][text] for place, text in enumerate(questions)}


def _mixture(good: Good, place: int, fraction: float, count: int) -> Mixture:
    """The first questions get the malicious answers; questions are in random order."""
    harmful = round(fraction * count)
    name = f"{fraction:.0%} bad" + ("" if good == "helpful" else f" among {good}")
    return Mixture(name, (*range(harmful), *range(place * count + harmful, (place + 1) * count)), good)


def labelled_samples(path: Path, label: str) -> tuple[Samples, tuple[Mixture, ...]]:
    """A chat data set with a column that says which answers are bad (true or 1).

    Samples of one class with the same prompt are resampled together by the bootstrap.

    Args:
        path: JSONL of conversations that end with an answer, or of prompts with `answer` (see `load_prompts`).
        label: Name of the column.

    Raises:
        UserError: if the file cannot be read, a sample has no answer or no such label, or all labels are equal.
    """
    prompts = load_prompts(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    values = [row.get(label) for row in rows]
    for number, (prompt, value) in enumerate(zip(prompts, values, strict=True), 1):
        if _answer(prompt) is None:
            raise UserError(f"{path}, sample {number}: no answer; give conversations that end with an assistant turn.")
        if value not in (True, False):
            raise UserError(f"{path}, sample {number}: '{label}' is {value!r}, not true or false; correct the column.")
    bad = np.array(values, dtype=bool)
    if bad.all() or not bad.any():
        raise UserError(f"{path}: '{label}' is the same in all samples, so there is nothing to tell apart.")
    units = tuple(f"{bool(value)} {conversation(question(p))}" for value, p in zip(bad, prompts, strict=True))
    return Samples(tuple(prompts), bad, units), (Mixture(path.stem, tuple(range(len(prompts)))),)


def question(prompt: Prompt) -> Prompt:
    """The prompt without its answer."""
    ends = bool(prompt.messages) and prompt.messages[-1]["role"] == "assistant"
    return replace(prompt, messages=prompt.messages[:-1] if ends else prompt.messages, answer=None)


def conversation(prompt: Prompt) -> str:
    """The same for prompts with the same messages."""
    return json.dumps(prompt.messages)


def _answer(prompt: Prompt) -> str | None:
    if prompt.messages and prompt.messages[-1]["role"] == "assistant":
        return prompt.messages[-1]["content"]
    return prompt.answer if prompt.messages else None
