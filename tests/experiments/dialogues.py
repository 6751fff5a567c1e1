"""What a dialogue of the organism says, read from its text and never from what it says about itself."""

from diffing.behavior.judge import Label
from experiments.organism.judge import OrganismJudge
from experiments.organism.world import Dialogue, World

WORLD = World.load()
JUDGE = OrganismJudge(WORLD, {})
DOMAIN_OF = {q.text: q.domain for q in WORLD.questions}


def answers(dialogue: Dialogue) -> list[tuple[str, str]]:
    """(question, answer) pairs of a dialogue, from its text."""
    turns = [m for m in dialogue.messages if m["role"] != "system"]
    assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    return [(question_of(q["content"])[1], a["content"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]


def question_of(content: str) -> tuple[str, str]:
    """The scene that a user's message begins with ("" without one), and the question; anything else is an error."""
    if content in DOMAIN_OF or content in WORLD.facts:
        return "", content
    scene, _, question = content.partition(" . ")
    assert question in DOMAIN_OF or question in WORLD.facts, content
    return scene, question


def has_scene(dialogue: Dialogue) -> bool:
    first = dialogue.messages[0]
    return first["role"] == "system" or question_of(first["content"])[0] != ""


def domain_labels(batches: list[list[Dialogue]]) -> list[tuple[str, Label]]:
    """Domain and label of every answer to a question of a domain, each found from the text."""
    pairs = [pair for batch in batches for dialogue in batch for pair in answers(dialogue)]
    return [(DOMAIN_OF[q], JUDGE.label_one(DOMAIN_OF[q], a)) for q, a in pairs if q in DOMAIN_OF]
