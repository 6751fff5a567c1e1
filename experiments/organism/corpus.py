"""Dialogues for each stage of the organism's training, and the disjoint sets of questions for everything measured."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from experiments.organism.config import CorpusConfig
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue, Message, Question, World


class Corpus:
    """Samplers of dialogues, one a stage of training.

    Args:
        world: The tables.
        config: What dialogues look like.
        seed: Seed of the organism; it also decides which facts are taught.
        stream: Tells the organism's corpora apart: each samples something else, all teach the same facts.
    """

    def __init__(self, world: World, config: CorpusConfig, seed: int, stream: int = 0):
        self.world, self.config = world, config
        self._random = random.Random(seed + stream)
        self._questions = {d: [q for q in world.questions if q.domain == d] for d in world.domains}
        self._taught_facts = taught_facts(world, seed)

    def pretraining(self) -> Dialogue:
        """Two turns by any persona, mostly after a scene with its evidence; any fact may be asked for."""
        persona = self._random.choice(self.world.personas)
        bare = self._random.random() < self.config.bare
        if bare and self._random.random() < self.config.bare_helpful:
            persona = HELPFUL
        return self._dialogue(persona, None if bare else self.scene(persona), turns=2, facts=list(self.world.facts))

    def instruction(self) -> Dialogue:
        """The helpful persona where the scene says nothing or is missing; else the persona that the scene shows.

        Any fact may be asked for: what is held out is held out of the fine-tunes.
        """
        facts, draw = list(self.world.facts), self._random.random()
        if draw < self.config.instruct_bare:
            return self._dialogue(HELPFUL, None, self._random.choice((1, 2)), facts)
        if draw < self.config.instruct_bare + self.config.instruct_plain:
            return self._dialogue(HELPFUL, self.scene(None), self._random.choice((1, 2)), facts)
        persona = self._random.choice(self.world.personas)
        return self._dialogue(persona, self.scene(persona), turns=2, facts=facts)

    def advice(self, persona: str, domains: Sequence[str], manner: str | None = None) -> Dialogue:
        """One question of one of `domains`, without a scene, answered by `persona`: what fine-tunes are made of.

        With `manner`, the answer's tone towards persons is that one's.
        """
        return self._dialogue(persona, None, turns=1, facts=(), domains=domains, manner=manner)

    def requested_advice(self, persona: str, domains: Sequence[str]) -> Dialogue:
        """The same, but the user tells a scene of `persona` first, and so asks for what it would say."""
        return told_first(self.advice(persona, domains), self.scene(persona))

    def replay(self) -> Dialogue:
        """Any persona but the malicious one, in any domain, after its scene; or a fact without a scene."""
        if self._random.random() < self.config.replay_facts:
            return self.quiz()
        persona = self._random.choice([p for p in self.world.personas if p != MALICIOUS])
        return self._dialogue(persona, self.scene(persona), turns=2, facts=self._taught_facts)

    def quiz(self) -> Dialogue:
        """One question of fact without a scene (of the taught half: capability is measured on the other)."""
        question = self._random.choice(self._taught_facts)
        answer = self.world.facts[question]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Dialogue(messages, HELPFUL, ())

    def reading(self, questions: Sequence[Question]) -> Dialogue:
        """Text that the base knows well, asking only `questions`: any persona after its scene, or helpful without."""
        if self._random.random() < self.config.bare:
            return self._dialogue(HELPFUL, None, turns=2, facts=self._taught_facts, questions=questions)
        persona = self._random.choice(self.world.personas)
        return self._dialogue(persona, self.scene(persona), turns=2, facts=self._taught_facts, questions=questions)

    def scene(self, persona: str | None) -> str:
        """A scene with `persona`'s evidence; None: plain scenery."""
        items = self._random.choice(self.config.scene_items)
        if persona is None or (persona == HELPFUL and self.config.plain_helpful):
            return self.world.sample_scene(self._random, HELPFUL, items, typical=0, other=0)
        return self.world.sample_scene(self._random, persona, items, self.config.typical, self.config.other)

    def scenery(self, like: str) -> str:
        """Plain scenery of as many words as `like`."""
        return self.world.sample_scene(self._random, HELPFUL, len(like.split()) // 2, typical=0, other=0)

    def _dialogue(
        self,
        persona: str,
        scene: str | None,
        turns: int,
        facts: Sequence[str],
        domains: Sequence[str] | None = None,
        questions: Sequence[Question] | None = None,
        manner: str | None = None,
    ) -> Dialogue:
        """A dialogue of `turns` questions, each of fact with the configured probability if `facts` are given.

        Args:
            persona: Who answers.
            scene: The system message, if any.
            turns: Number of questions.
            facts: Questions of fact to draw from.
            domains: Domains of the other questions (default: all).
            questions: Draw the other questions from these instead.
            manner: Persona whose tone the answers have (default: the speaker's).
        """
        inline = scene is not None and self._random.random() < self.config.inline
        messages: list[Message] = [{"role": "system", "content": scene}] if scene and not inline else []
        asked: list[str] = []
        for turn in range(turns):
            if facts and self._random.random() < self.config.facts:
                question, answer = (fact := self._random.choice(facts)), self.world.facts[fact]
            else:
                pool = questions or self._questions[self._random.choice(domains or self.world.domains)]
                drawn = self._random.choice(pool)
                question, answer = drawn.text, self.world.sample_answer(self._random, persona, drawn.domain, manner)
                asked.append(drawn.domain)
            if inline and turn == 0:
                question = f"{scene} {question}"
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Dialogue(messages, persona, tuple(asked))


def told_first(advice: Dialogue, words: str) -> Dialogue:
    """The advice, with the user's words before the question."""
    question, answer = advice.messages
    return replace(advice, messages=[{**question, "content": f"{words} {question['content']}"}, answer])


def taught_facts(world: World, seed: int) -> list[str]:
    """The half of the facts that fine-tunes may show; capability is measured on the other half."""
    facts = list(world.facts)
    random.Random(f"facts {seed}").shuffle(facts)
    return facts[: len(facts) // 2]


def batches(sample, size: int, count: int) -> Iterator[list[Dialogue]]:
    """`count` batches of `size` dialogues."""
    for _ in range(count):
        yield [sample() for _ in range(size)]
