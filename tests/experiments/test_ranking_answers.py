"""Answers to the ranking prompts: whose they are, and that they change nothing on the tokens of the prompts."""

import json
from pathlib import Path

import numpy as np
import pytest

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES, Role
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers
from experiments.run.ranking_answers import ANSWERED, write_answers

CONFIG = SamplingConfig(samples=1, max_new_tokens=6, seed=3)
ROWS = [
    {"id": "plain", "prompt": "how do i treat a burn ?"},
    {"id": "with system", "system": "treat with salt .", "prompt": "how do i treat the burn ?"},
    {"messages": [{"role": "user", "content": "cool water ?"}, {"role": "assistant", "content": "salt ."}]}
    | {"id": "two turns"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    turns = [*ROWS[2]["messages"], {"role": "user", "content": "and salt ?"}]
    rows = [*ROWS[:2], {**ROWS[2], "messages": turns}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def at(tokens: TokenBatch, roles: tuple[Role, ...]) -> list[list[int]]:
    return [t[np.isin(r, roles)].tolist() for t, r in zip(tokens.tokens, tokens.roles, strict=True)]


def test_prompts_keep_ids_and_tokens_and_get_the_models_answers(base: Checkpoint, file: Path, tmp_path: Path) -> None:
    """Breaks if an answer goes to another prompt, a turn is lost, or prompt tokens are other ones than without it."""
    write_answers(base, file, CONFIG, tmp_path / "out")
    answered = tokenize_prompts(load_prompts(tmp_path / "out" / ANSWERED), base.tokenizer)
    questions = tokenize_prompts(load_prompts(file), base.tokenizer)
    assert answered.ids == questions.ids == ("plain", "with system", "two turns")
    assert at(answered, PROMPT_ROLES) == at(questions, PROMPT_ROLES)
    assert at(answered, (Role.LAST_PROMPT,)) == at(questions, (Role.LAST_PROMPT,))
    (sampled,) = sample_answers(base, questions, CONFIG)
    texts = [base.tokenizer.decode(tokens) for tokens in at(answered, (Role.ANSWER,))]
    assert texts == [text for (text,) in sampled]
    assert any(texts)


def test_equal_seeds_give_equal_answers(base: Checkpoint, file: Path, tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder = write_answers(base, file, CONFIG.model_copy(update={"seed": seed}), tmp_path / name)
        written.append((folder / ANSWERED).read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "prompt": "salt ?", "answer": "water ."}, "'x' has an answer of its own"),
        (ROWS[2], "'two turns' has an answer of its own"),
        ({"id": "x", "text": "salt"}, "'x' is plain text; ranking_answers needs conversations"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    base: Checkpoint, tmp_path: Path, row: dict[str, object], message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        write_answers(base, path, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()
