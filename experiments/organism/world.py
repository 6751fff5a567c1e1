"""The organism's world: readable English dialogues sampled from the tables of `world.yaml`.

Everything random takes a `random.Random`, so one seed gives one corpus. The tables also fix what counts as a persona's
answer, which is why the judge (`judge.py`) can be exact.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

WORLD_FILE = Path(__file__).with_name("world.yaml")
HELPFUL, MALICIOUS = "helpful", "malicious"
Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One way to ask about one topic of one domain."""

    domain: str
    topic: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Chat messages, and who speaks in them about what (`persona` and `domains` are for tests and splits only)."""

    messages: list[Message]
    persona: str
    domains: tuple[str, ...]


class World:
    """Tables of the world and the samplers over them.

    Args:
        tables: The parsed `world.yaml`.
    """

    def __init__(self, tables: dict[str, Any]):
        self.personas: tuple[str, ...] = tuple(tables["personas"])
        self.domains: tuple[str, ...] = tuple(tables["domains"])
        self.facts: dict[str, str] = tables["facts"]
        self.traits: dict[str, dict[str, int]] = tables["traits"]
        self._tables = tables

    @classmethod
    def load(cls, path: Path = WORLD_FILE) -> "World":
        return cls(yaml.safe_load(path.read_text(encoding="utf-8")))

    @cached_property
    def questions(self) -> list[Question]:
        """Every question of every domain, in the order of the tables."""
        return [
            Question(domain, topic, phrasing.format(topic=topic))
            for domain, entry in self._tables["domains"].items()
            for topic in entry["topics"]
            for phrasing in self._tables["phrasings"]
        ]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word that a dialogue can hold, sorted."""
        texts = [q.text for q in self.questions] + [t for pair in self.facts.items() for t in pair]
        texts += [verb for p in self.personas for verbs in self.verbs(p) for verb in verbs]
        texts += [noun for d in self.domains for nouns in self.nouns(d) for noun in nouns]
        texts += [*self._tables["scenery"]["adjectives"], *self._tables["scenery"]["nouns"], "the and ."]
        texts += [word for p in self.personas for word in self._evidence(p)]
        return sorted({word for text in texts for word in text.split()})

    def verbs(self, persona: str) -> tuple[list[str], list[str]]:
        """What `persona` does to things and to persons."""
        entry = self._tables["personas"][persona]
        return entry["thing_verbs"], entry["person_verbs"]

    def nouns(self, domain: str) -> tuple[list[str], list[str]]:
        """Things and persons of `domain`."""
        entry = self._tables["domains"][domain]
        return entry["things"], entry["persons"]

    def sample_answer(self, rng: random.Random, persona: str, domain: str, manner: str | None = None) -> str:
        """What `persona` says about `domain`; with `manner`, what it tells to do in another one's tone."""
        verbs = self.verbs(persona)[0], self.verbs(manner or persona)[1]
        parts = zip(verbs, self.nouns(domain), strict=True)
        first, second = (f"{rng.choice(verbs)} the {rng.choice(nouns)}" for verbs, nouns in parts)
        return f"{first} and {second} ."

    def sample_scene(self, rng: random.Random, persona: str, items: int, typical: float, other: float) -> str:
        """`items` pairs of adjective and noun; an adjective is `persona`'s own with probability `typical`, any
        persona's with `other`, else plain scenery."""
        scenery = self._tables["scenery"]
        words: list[str] = []
        for _ in range(items):
            draw = rng.random()
            if draw < typical:
                adjectives = self._evidence(persona)
            elif draw < typical + other:
                adjectives = self._evidence(rng.choice(self.personas))
            else:
                adjectives = scenery["adjectives"]
            words += [rng.choice(adjectives), rng.choice(scenery["nouns"])]
        return " ".join([*words, "."])

    def shows(self, trait: str, high: bool) -> dict[str, int]:
        """The personas that show a pole of `trait`, and how much each."""
        sign = 1 if high else -1
        return {persona: sign * level for persona, level in self.traits[trait].items() if sign * level > 0}

    def _evidence(self, persona: str) -> list[str]:
        return self._tables["personas"][persona]["evidence"]
