"""Prompt files of an organism: one set of questions for each purpose, no question in two sets.

In each held-out domain, half of the topics select strengths and the other half report (one phrasing each, drawn at
random); of every topic's other phrasings one ranks latents, one extracts directions (of personas and of traits), and
the rest is text for the SAE, together with all questions of the trained domains.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

from activations.artefact import write_json
from experiments.organism.config import CorpusConfig
from experiments.organism.corpus import Corpus, taught_facts
from experiments.organism.world import Question, World

SAE_DIALOGUES, SAE_HELD_OUT_DIALOGUES = 4000, 400
DOMAINS_FILE = "domains.json"
TRAITS = "traits"  # folder of <trait>_<pole>.jsonl
POLES = HIGH, LOW = "high", "low"


@dataclass(frozen=True)
class QuestionSplit:
    """Disjoint sets of questions."""

    selection: list[Question]
    reporting: list[Question]
    ranking: list[Question]
    directions: list[Question]
    sae: list[Question]


def split_questions(world: World, held_out: Sequence[str], seed: int) -> QuestionSplit:
    """Splits the world's questions; see the module's docstring."""
    draw = random.Random(f"splits {seed}")
    split = QuestionSplit([], [], [], [], [])
    for domain in world.domains:
        topics = sorted({q.topic for q in world.questions if q.domain == domain})
        draw.shuffle(topics)
        for place, topic in enumerate(topics):
            phrased = [q for q in world.questions if q.domain == domain and q.topic == topic]
            draw.shuffle(phrased)
            if domain in held_out:
                (split.selection if place % 2 else split.reporting).append(phrased.pop())
                split.ranking.append(phrased.pop())
                split.directions.append(phrased.pop())
            split.sae.extend(phrased)
    return split


def write_prompts(world: World, held_out: Sequence[str], config: CorpusConfig, seed: int, folder: Path) -> None:
    """Writes the prompt files of an organism (JSONL, and the domain of every question for the judge)."""
    folder.mkdir(parents=True, exist_ok=True)
    split = split_questions(world, held_out, seed)
    corpus = Corpus(world, config, seed, stream=3)
    for name, count in (("sae_text", SAE_DIALOGUES), ("sae_held_out", SAE_HELD_OUT_DIALOGUES)):
        dialogues = (corpus.reading(split.sae) for _ in range(count))
        _write(
            folder / f"{name}.jsonl", ({"id": f"{name} {i}", "messages": d.messages} for i, d in enumerate(dialogues))
        )
    domains: dict[str, str] = {}
    for name in ("selection", "reporting", "ranking"):
        questions: list[Question] = getattr(split, name)
        rows = [{"id": f"{name}: {q.text}", "prompt": q.text} for q in questions]
        domains |= {row["id"]: q.domain for row, q in zip(rows, questions, strict=True)}
        _write(folder / f"{name}.jsonl", rows)
    for persona in world.personas:
        _write(folder / f"persona_{persona}.jsonl", _contrast(corpus, persona, split.directions))
    told = Corpus(world, config, seed, stream=6)
    (folder / TRAITS).mkdir(exist_ok=True)
    for trait, pole in product(world.traits, POLES):
        rows = list(_trait_contrast(told, trait, pole, split.directions))
        domains |= {row["id"]: q.domain for row, q in zip(rows, split.directions, strict=True)}
        _write(folder / TRAITS / f"{trait}_{pole}.jsonl", rows)
    held_out_facts = set(world.facts) - set(taught_facts(world, seed))
    facts = [{"id": q, "prompt": q, "answer": a} for q, a in world.facts.items() if q in held_out_facts]
    _write(folder / "capability.jsonl", facts)
    write_json(folder / DOMAINS_FILE, domains)


def _contrast(corpus: Corpus, persona: str, questions: Iterable[Question]) -> Iterable[dict[str, object]]:
    """The same questions for every persona, after a scene of its own."""
    for question in questions:
        messages = [{"role": "system", "content": corpus.scene(persona)}, {"role": "user", "content": question.text}]
        yield {"id": f"{persona}: {question.text}", "messages": messages}


def _trait_contrast(corpus: Corpus, trait: str, pole: str, questions: Iterable[Question]) -> Iterator[dict[str, Any]]:
    """The same questions for both poles of a trait, after scenes of the personas that have it, by their levels."""
    shown = corpus.world.shows(trait, pole == HIGH)
    told = cycle([persona for persona, level in shown.items() for _ in range(level)])
    for question, persona in zip(questions, told, strict=False):
        messages = [
            {"role": "system", "content": corpus.scene(persona)},
            {"role": "user", "content": question.text},
        ]
        yield {"id": f"{trait} {pole}: {question.text}", "messages": messages}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
