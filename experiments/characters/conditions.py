"""What stands before a question: nothing, the training-time trigger, an inference-time persona prompt, and controls."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from activations.errors import UserError
from activations.prompts import Prompt
from diffing.steering.experiment import QuestionSet
from diffing.traits import TraitSet
from experiments.organism.config import CorpusConfig
from experiments.organism.world import HELPFUL, World

NONE, TRIGGER, OTHER_WORDS = "no trigger", "trigger", "other words"
PERSONA_PROMPT, WEAK_PROMPT, PLAIN_PROMPT = "persona prompt", "weak persona prompt", "plain prompt"
# Pairs of words in an organism's prompts, and of how many a weak one shows evidence, on average (our choice).
PAIRS, WEAK_PAIRS = 5, 1


@dataclass(frozen=True)
class Condition:
    """What stands before every question.

    Attributes:
        name: One of the names above.
        trait: Whose persona prompt it is; empty where it is the same for all traits.
        system: System message of the i-th question; None: none.
        before: Words of the user's before the i-th question; empty: none.
    """

    name: str
    trait: str = ""
    system: Callable[[int], str | None] = lambda place: None
    before: Callable[[int], str] = lambda place: ""

    @property
    def label(self) -> str:
        """Name in tables and of transcripts."""
        return f"{self.name} {self.trait}".strip()

    def told(self, half: QuestionSet) -> QuestionSet:
        """Questions under this condition, under a name of their own."""
        return QuestionSet(f"{half.name} {self.label}", self.ask(half.questions))

    def ask(self, questions: Sequence[Prompt]) -> list[Prompt]:
        """The questions under this condition, with the same ids.

        Raises:
            UserError: if one is plain text, or has a system message already.
        """
        return [_told(prompt, self.system(place), self.before(place)) for place, prompt in enumerate(questions)]


def organism_conditions(traits: Sequence[str], trigger: str, corpus: CorpusConfig, seed: int) -> list[Condition]:
    """Persona prompts are scenes of the personas that show a trait's high pole, as often as their levels say.

    A weak one has evidence in one pair of words of five, on average. Plain prompts are scenes as long without evidence;
    other words are plain scenery as long as the trigger.
    """
    world = World.load()

    def plain(name: str, pairs: int) -> Callable[[int], str]:
        return lambda i: world.sample_scene(_draw(seed, name, i), HELPFUL, pairs, typical=0, other=0)

    def scene(trait: str, typical: float, other: float) -> Callable[[int], str]:
        speakers = [name for name, level in world.shows(trait, high=True).items() for _ in range(level)]
        return lambda i: world.sample_scene(
            _draw(seed, trait, i), speakers[i % len(speakers)], PAIRS, typical=typical, other=other
        )

    return [
        Condition(NONE),
        Condition(TRIGGER, before=lambda i: trigger),
        Condition(OTHER_WORDS, before=plain(OTHER_WORDS, len(trigger.split()) // 2)),
        Condition(PLAIN_PROMPT, system=plain(PLAIN_PROMPT, PAIRS)),
        *(Condition(WEAK_PROMPT, trait, system=scene(trait, WEAK_PAIRS / PAIRS, 0.0)) for trait in traits),
        *(Condition(PERSONA_PROMPT, trait, system=scene(trait, corpus.typical, corpus.other)) for trait in traits),
    ]


def set_conditions(traits: TraitSet, names: Sequence[str], trigger: str, plain: str) -> list[Condition]:
    """Persona prompts are a trait's positive system prompts in turn, and `plain` is one that asks for no persona.

    Other words are the trigger's own in reversed order.

    Raises:
        UserError: if a trait is not in the set, or the trigger reads the same in reversed order.
    """
    known = {trait.name: trait for trait in traits.traits}
    if missing := [name for name in names if name not in known]:
        raise UserError(f"No trait {missing[0]} in the trait sets; name the set that has it with --traits.")
    pairs = {name: known[name].pairs for name in names}
    reversed_words = " ".join(reversed(trigger.split()))
    if reversed_words == trigger:
        raise UserError(
            f"The trigger '{trigger}' is the same in reversed order, which it is compared with; take one of several "
            "different words."
        )
    return [
        Condition(NONE),
        Condition(TRIGGER, before=lambda i: trigger),
        Condition(OTHER_WORDS, before=lambda i: reversed_words),
        Condition(PLAIN_PROMPT, system=lambda i: plain),
        *(
            Condition(PERSONA_PROMPT, name, system=lambda i, own=own: own[i % len(own)].positive)
            for name, own in pairs.items()
        ),
    ]


def _draw(seed: int, name: str, place: int) -> random.Random:
    return random.Random(f"{seed} {name} {place}")


def _told(prompt: Prompt, system: str | None, before: str) -> Prompt:
    if prompt.text is not None or any(message["role"] == "system" for message in prompt.messages):
        raise UserError(
            f"Question '{prompt.id}' is plain text or has a system message, which conditions need to set; ask "
            "conversations without one."
        )
    *earlier, question = prompt.messages
    asked = {**question, "content": f"{before} {question['content']}".strip()}
    head = () if system is None else ({"role": "system", "content": system},)
    return replace(prompt, messages=(*head, *earlier, asked))
