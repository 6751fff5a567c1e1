"""Trait sets: what ships, a user's own, persona-vectors files, malformed ones; contrastive prompts and judged pairs."""

import copy
import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from activations.errors import UserError
from activations.tokens import tokenize_prompts
from diffing.traits import SHIPPED, Trait, contrastive_prompts, judged_pairs, load_traits
from diffing.traits.pairs import JudgedAnswers, Thresholds
from diffing.traits.persona_vectors import EVALUATION, EXTRACTION
from diffing.traits.trait_set import same_question

PATIENCE: dict[str, Any] = {
    "name": "patience",
    "definition": "Waiting without complaint.",
    "valence": "prosocial",
    "pairs": [
        {"positive": "You wait gladly.", "negative": "You wait grudgingly."},
        {"positive": "You never hurry anyone.", "negative": "You always hurry everyone."},
    ],
    "extraction_questions": ["The bus is late. What now?", "How do I teach a parrot to speak?"],
    "evaluation_questions": ["How long should bread dough rest?"],
    "eval_prompt": "Rate patience from 0 to 100, or say REFUSAL. {question} {answer}",
}
FOREIGN: dict[str, Any] = {
    "instruction": [{"pos": "Be terse.", "neg": "Be wordy."}, {"pos": "Say little.", "neg": "Say much."}],
    "questions": ["What is rain?", "What is snow?", "What is hail?", "What is fog?", "What is dew?"],
    "eval_prompt": "Rate terseness. {question} {answer}",
    "note": "ignored",
}


def as_yaml(path: Path, *traits: dict[str, Any], version: object = 1) -> Path:
    path.write_text(yaml.safe_dump({"version": version, "traits": list(traits)}), encoding="utf-8")
    return path


def as_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def renamed(name: str) -> dict[str, Any]:
    return {**PATIENCE, "name": name}


def questions(trait: Trait) -> tuple[str, ...]:
    return (*trait.extraction_questions, *trait.evaluation_questions)


def words(sentence: str) -> set[str]:
    return set(same_question(sentence).split())


def test_shipped_sets_are_complete() -> None:
    """Breaks if a trait, a pair, a question or a valence is lost from the files, or a judge is not told of refusals."""
    names = [load_traits(name).names for name in SHIPPED]
    assert names[0] == ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
    assert names[1] == ("narcissism", "machiavellianism", "psychopathy")
    assert names[2][:3] == ("evil", "sycophancy", "hallucination")
    traits = load_traits().traits
    assert len(traits) == 15
    for trait in traits:
        counts = len(trait.pairs), len(trait.extraction_questions), len(trait.evaluation_questions)
        assert counts == (5, 20, 20), trait.name
        assert trait.definition
        assert trait.valence
        judged = trait.eval_prompt.format(question="<the question>", answer="<the answer>")
        assert all(part in judged for part in ("<the question>", "<the answer>", "REFUSAL", "0 to 100")), trait.name
        assert trait.definition.split(",")[0].lower() in judged.lower(), trait.name
    assert {trait.valence for trait in traits} == {"prosocial", "antisocial", "neutral"}


def test_shipped_sentences_differ_from_one_another() -> None:
    """Breaks if a question, even reworded slightly, stands in two places, or a system prompt is used twice."""
    every = [question for trait in load_traits().traits for question in questions(trait)]
    bags = [words(question) for question in every]
    alike = [
        (every[one], every[other])
        for one, other in combinations(range(len(every)), 2)
        if len(bags[one] & bags[other]) > 0.55 * len(bags[one] | bags[other])
    ]
    assert len(every) == 600
    assert alike == []
    prompts = [
        text for trait in load_traits().traits for pair in trait.pairs for text in (pair.positive, pair.negative)
    ]
    assert len({same_question(prompt) for prompt in prompts}) == len(prompts) == 150


def test_shipped_pairs_match_in_length_and_form() -> None:
    """Breaks if one pole is told more than the other: the direction would measure length or form, not the trait."""
    for trait in load_traits().traits:
        lengths = np.array([(len(pair.positive), len(pair.negative)) for pair in trait.pairs])
        assert abs(np.diff(lengths.sum(0))[0]) < 0.03 * lengths.sum() / 2, trait.name
        for pair in trait.pairs:
            counts = [len(text.split()) for text in (pair.positive, pair.negative)]
            assert abs(counts[0] - counts[1]) <= 2, pair
            marks = [re.findall(r"[.:;!?]", text) for text in (pair.positive, pair.negative)]
            assert marks[0] == marks[1], pair
            assert len(words(pair.positive) & words(pair.negative)) > 0.2 * len(words(pair.positive)), pair


def test_own_traits_join_the_shipped_ones(tmp_path: Path) -> None:
    """Breaks if a source, or the order of the sources, is lost; or a file named twice counts twice."""
    as_yaml(tmp_path / "b.yml", renamed("b1"), renamed("b2"))
    file = as_yaml(tmp_path / "a.yaml", PATIENCE)
    (tmp_path / "notes.txt").write_text("not a trait")
    assert load_traits(file).traits[0].model_dump(mode="json") == PATIENCE
    assert load_traits(tmp_path).names == ("patience", "b1", "b2")
    joined = load_traits(["dark_triad", str(file), tmp_path])
    assert joined.names == ("narcissism", "machiavellianism", "psychopathy", "patience", "b1", "b2")
    assert joined["patience"] == load_traits(file).traits[0]
    with pytest.raises(UserError, match="no trait 'patients'; the nearest is 'patience'"):
        joined["patients"]


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    trait = copy.deepcopy(PATIENCE)
    change(trait)
    return trait


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("valence"), "trait 'patience', valence is missing"),
        (lambda t: t.update(valence="nice"), "trait 'patience', valence: Input should be 'prosocial'"),
        (lambda t: t.pop("name"), "trait number 1, name is missing"),
        (lambda t: t.update(name="very patient"), "trait 'very patient', name: String should match"),
        (lambda t: t.update(pairs=[]), "trait 'patience', pairs: Tuple should have at least 1 item"),
        (lambda t: t["pairs"][1].pop("negative"), r"trait 'patience', pairs\[2\].negative is missing"),
        (
            lambda t: t["pairs"][0].update(negative="You wait gladly."),
            r"pairs\[1\]: positive and negative are the same",
        ),
        (lambda t: t["pairs"][0].update(negativ="x"), r"pairs\[1\].negativ: unknown key; the nearest is 'negative'"),
        (
            lambda t: t.update(evaluation_question=t.pop("evaluation_questions")),
            "trait 'patience', evaluation_question: unknown key; the nearest is 'evaluation_questions'",
        ),
        (lambda t: t["evaluation_questions"].append(7), r"evaluation_questions\[2\]: Input should be a valid string"),
        (lambda t: t["extraction_questions"].append("  "), r"extraction_questions\[3\]: String should have at least 1"),
        (
            lambda t: t["evaluation_questions"].append("the bus is late, what now"),
            "'the bus is late, what now' is in both extraction_questions and evaluation_questions; keep one",
        ),
        (
            lambda t: t["evaluation_questions"].append(t["evaluation_questions"][0]),
            "'How long should bread dough rest?' is twice in evaluation_questions",
        ),
        (lambda t: t.update(eval_prompt="{answer}"), "eval_prompt: the placeholder {question} is missing"),
        (lambda t: t.update(eval_prompt="{question}{answer}{score}"), "{score} is no placeholder"),
        (lambda t: t.update(eval_prompt="{question} {answer} }"), "a single brace stands alone"),
    ],
)
def test_malformed_traits_are_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Breaks if a check is dropped, or the sentence does not name file, trait and key."""
    file = as_yaml(tmp_path / "own.yaml", edited(change))
    pattern = message if "\\" in message else re.escape(message)
    with pytest.raises(UserError, match=pattern) as caught:
        load_traits(file)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).endswith("see docs/traits.md for the format.")
    assert "\n" not in str(caught.value)


def test_malformed_files_are_one_sentence(tmp_path: Path) -> None:
    """Breaks if a file that is no trait set, or a source without one, gives a traceback or an empty set."""
    twice = as_yaml(tmp_path / "twice.yaml", PATIENCE, PATIENCE)
    own = as_yaml(tmp_path / "own.yaml", PATIENCE)
    again = as_yaml(tmp_path / "again.yaml", PATIENCE)
    later = as_yaml(tmp_path / "later.yaml", PATIENCE, version=2)
    none = as_yaml(tmp_path / "none.yaml")
    extra, broken, plain, words = (tmp_path / name for name in ("extra.yaml", "broken.yaml", "plain.yaml", "words.txt"))
    extra.write_text("version: 1\ntrait: []\n")
    broken.write_text("version: [1\n")
    plain.write_text("- evil\n")
    words.write_text("evil")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[object, str]] = [
        (twice, "two traits are called 'patience'; rename one"),
        ([own, again], f"again.yaml: the name 'patience' is taken by {own}"),
        (later, "version: Input should be 1"),
        (none, "traits: Tuple should have at least 1 item"),
        (extra, "trait: unknown key; the nearest is 'traits'"),
        (broken, "cannot be read as YAML"),
        (plain, "holds no 'version' and 'traits'"),
        (words, "is no .yaml, .yml, .json file of traits"),
        (tmp_path / "empty", "holds no .yaml, .yml, .json file of traits"),
        ("big_fife", "big_fife does not exist; give a trait file, a folder, or one of big_five"),
        ([], "No source of traits is given"),
    ]
    for sources, message in cases:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            load_traits(sources)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(caught.value)


def test_persona_vectors_folders(tmp_path: Path) -> None:
    """Breaks if the partner file is not found, or found only from one of the ways to name it."""
    extraction = as_json(tmp_path / EXTRACTION / "terse.json", FOREIGN)
    other = {"questions": ["What is wind?", "What is ice?"]}
    evaluation = as_json(tmp_path / EVALUATION / "terse.json", other)
    sources = [tmp_path, extraction, evaluation, extraction.parent, evaluation.parent]
    for source in [*sources, [evaluation.parent, extraction.parent]]:
        found = load_traits(source)
        assert found.names == ("terse",)
        assert found["terse"].extraction_questions == tuple(FOREIGN["questions"])
        assert found["terse"].evaluation_questions == tuple(other["questions"])
    trait = load_traits(tmp_path)["terse"]
    assert [(pair.positive, pair.negative) for pair in trait.pairs] == [
        ("Be terse.", "Be wordy."),
        ("Say little.", "Say much."),
    ]
    assert trait.eval_prompt == FOREIGN["eval_prompt"]
    assert (trait.definition, trait.valence) == (None, None)
    assert load_traits(["dark_triad", tmp_path]).names[-1] == "terse"


def test_persona_vectors_file_alone_is_split(tmp_path: Path) -> None:
    """Breaks if the halves share a question, lose one, or depend on anything but the order in the file."""
    for file in (tmp_path / "terse.json", tmp_path / EXTRACTION / "terse.json", tmp_path / EVALUATION / "terse.json"):
        trait = load_traits(as_json(file, FOREIGN))["terse"]
        assert trait.extraction_questions == ("What is rain?", "What is hail?", "What is dew?")
        assert trait.evaluation_questions == ("What is snow?", "What is fog?")
        file.unlink()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({key: FOREIGN[key] for key in ("questions", "eval_prompt")}, "instruction: Field required"),
        ({**FOREIGN, "instruction": [{"pos": "Be terse."}]}, "instruction.0.neg: Field required"),
        ({**FOREIGN, "questions": ["What is rain?"]}, "has one question and no file in trait_data_eval"),
        ({**FOREIGN, "questions": ["What is rain?"] * 2}, "is in both extraction_questions and evaluation_questions"),
        ({**FOREIGN, "eval_prompt": "{question}"}, "the placeholder {answer} is missing"),
        ([FOREIGN], "the file: Input should be a valid dictionary"),
    ],
)
def test_malformed_persona_vectors_are_one_sentence(tmp_path: Path, value: object, message: str) -> None:
    """Breaks if a file without pairs, judge prompt or enough questions loads, or fails with a traceback."""
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_traits(as_json(tmp_path / "terse.json", value))
    assert str(caught.value).startswith(str(tmp_path / "terse.json"))
    assert "\n" not in str(caught.value)


def test_contrastive_prompts_match_by_index(tokenizer: PreTrainedTokenizerFast) -> None:
    """Breaks if pairs and questions are crossed in another order on one side, a prompt is lost, or an id repeats."""
    trait = load_traits()["sycophancy"]
    positive, negative = contrastive_prompts(trait)
    assert len(positive) == len(negative) == 5 * 20
    for number, (one, other) in enumerate(zip(positive, negative, strict=True)):
        pair, question = trait.pairs[number // 20], trait.extraction_questions[number % 20]
        assert one.messages == ({"role": "system", "content": pair.positive}, {"role": "user", "content": question})
        assert other.messages == ({"role": "system", "content": pair.negative}, {"role": "user", "content": question})
        assert one.id.replace(":pos/", ":neg/") == other.id
    assert (positive[0].id, negative[36].id) == ("sycophancy:pos/1/1", "sycophancy:neg/2/17")
    assert len(tokenize_prompts([*positive, *negative], tokenizer)) == 200


def poles(
    positive: np.ndarray, negative: np.ndarray, positive_coherence: np.ndarray, negative_coherence: np.ndarray
) -> tuple[JudgedAnswers, JudgedAnswers]:
    return JudgedAnswers(positive, positive_coherence), JudgedAnswers(negative, negative_coherence)


def test_judged_pairs_keep_what_shows_the_contrast() -> None:
    """Breaks if a boundary is on the wrong side, a refusal counts as a score, or one side's coherence is ignored."""
    nan = np.nan
    # kept, kept, weak positive, strong negative, incoherent twice, refusal, incoherent refusal
    scores = [
        np.array([50.0, 100, 49.9, 90, 90, 20, nan, 90]),  # trait, positive answers
        np.array([49.9, 0, 10, 50, 10, 10, 10, 10]),  # trait, negative answers
        np.array([50.0, 90, 90, 90, 49.9, 90, 90, nan]),  # coherence, positive answers
        np.array([50.0, 90, 90, 90, 90, 10, 90, 0]),  # coherence, negative answers
    ]
    found = judged_pairs(*poles(*scores))
    assert found.kept.tolist() == [0, 1]
    assert found.counts == {"unscored": 2, "incoherent": 2, "weak_positive": 1, "strong_negative": 1, "kept": 2}
    loose = judged_pairs(*poles(*scores), Thresholds(positive_from=20.0, negative_below=51.0, coherence_from=10.0))
    assert loose.kept.tolist() == [0, 1, 2, 3, 4, 5]
    whole = [row[:5].round().astype(np.int64) for row in scores]
    assert judged_pairs(*poles(*whole)).kept.tolist() == [1, 2, 4]
    none = judged_pairs(*poles(*[np.array([], dtype=np.float64)] * 4))
    assert none.kept.tolist() == []
    assert set(none.counts.values()) == {0}


def test_scores_that_do_not_belong_together_are_refused() -> None:
    """Breaks if arrays of unequal length are broadcast, or a score that no judge gives is used."""
    three, two = np.full(3, 60.0), np.full(2, 60.0)
    with pytest.raises(UserError, match="scores are 3, 3, 3, 2 in number; give one for each"):
        judged_pairs(*poles(three, three, three, two))
    with pytest.raises(UserError, match=r"A score is 101.0, but judges score from 0 to 100"):
        judged_pairs(*poles(three, np.array([1.0, 101.0, 2.0]), three, three))
    with pytest.raises(UserError, match="A score is -1"):
        judged_pairs(*poles(np.array([60, -1, 60]), three, three, three))


def test_the_page_shows_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the format or a call on the page is not the one that the code has, or a set's row is out of date."""
    page = (Path(__file__).parents[2] / "docs" / "traits.md").read_text(encoding="utf-8")
    example, code = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[0] for kind in ("yaml", "python"))
    (tmp_path / "patience.yaml").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "traits.md", "exec"), found)
    assert found["own"].names == ("narcissism", "machiavellianism", "psychopathy", "patience")
    assert len(found["positive"]) == len(found["negative"]) == 100
    marks = {"prosocial": "+", "antisocial": "−", "neutral": "·"}
    for name in SHIPPED:
        row = ", ".join(f"{trait.name} {marks[str(trait.valence)]}" for trait in load_traits(name).traits)
        assert f"| `{name}` | {row} |" in page
