"""`personas extract` with a language model as judge: planted models answer, a planted judge behind a server scores."""

import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, Served, serving
from planted_judge import COHERENT, OTHERWISE, SAYS, write_judge
from planted_models import write_run
from rich.console import Console
from test_personas import TRAITS, planted, write_model, write_traits

from activations.artefact import read_json
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.personality.config import ExtractionConfig
from diffing.personality.model_space import ModelSpace
from diffing.traits import contrastive_prompts, load_traits
from experiments.frame.lab import REPLIES
from experiments.monitor.config import Asked, MonitorConfig
from experiments.trait_directions.experiment import extract
from experiments.trait_directions.summary import print_extract

VARIABLE = "KEY_OF_TESTS"
EXTRACT = ExtractionConfig(positions=("answer", "last_prompt"), samples=2, max_new_tokens=1, splits=10, rows=40)
# Scores the words of three traits apart, calls both words of the fourth strong and one of the fifth babble, and gives
# no score where a question speaks of the cold, which four of sixteen do.
JUDGE = {
    OTHERWISE: SAYS[OTHERWISE],
    COHERENT: SAYS[COHERENT],
    "cold": {"REFUSAL": 1000.0},
    **{f"{trait}{end}": {score: 40.0} for trait in TRAITS for end, score in (("+", "90"), ("-", "10"))},
    "loud-": {"90": 40.0},
    "rude-": SAYS["babble"],
}
ENDS = ("unscored", "incoherent", "weak_positive", "strong_negative", "kept")


@dataclass(frozen=True)
class Made:
    """A finished run, its trait file, what was extracted, and the server of the judge."""

    folder: Path
    served: Served
    judge: ModelJudgeConfig
    found: dict[str, Any]

    def extract(self, out: Path, judge: ModelJudgeConfig, **options: Any) -> dict[str, Any]:
        traits = [self.folder / "traits.yaml"]
        return extract(self.folder / "run", out, EXTRACT, traits=traits, progress=False, judge=judge, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("judged")
    write_run(folder / "run", write_model(folder / "base", tokenizer_maker, planted(1)))
    write_traits(folder / "traits.yaml")
    write_judge(folder / "judge", tokenizer_maker, JUDGE)
    with pytest.MonkeyPatch.context() as patch, serving(folder / "judge", folder / "requests.jsonl") as served:
        patch.setenv(VARIABLE, KEY)
        config = ModelJudgeConfig(url=served.url, model="planted", key_variable=VARIABLE, retries=0)
        made = Made(folder, served, config, {})
        made.found.update(made.extract(folder / "space", config))
        yield made


def expected_ends(made: Made, model: str) -> dict[str, Counter[str]]:
    """Trait -> how many pairs meet which end, from the words that the model said and what the judge thinks of them."""
    lines = (made.folder / "space" / "answers" / f"{model}.jsonl").read_text(encoding="utf-8").splitlines()
    said = {row["id"]: row["answers"] for row in map(json.loads, lines)}
    ends: dict[str, Counter[str]] = {trait: Counter() for trait in TRAITS}
    for trait in load_traits([made.folder / "traits.yaml"]).traits:
        for high, low in zip(*contrastive_prompts(trait), strict=True):
            cold = "cold" in high.messages[-1]["content"].split()
            for pair in zip(said[high.id], said[low.id], strict=True):
                ends[trait.name][_end(cold, *pair)] += 1
    return ends


def _end(cold: bool, high: str, low: str) -> str:
    babble, strong = {"rude-"}, {"loud-", *(f"{trait}+" for trait in TRAITS)}
    # Babble is never asked about the trait, so the cold is not seen.
    if cold and not {high, low} <= babble:
        return "unscored"
    if {high, low} & babble:
        return "incoherent"
    return "weak_positive" if high not in strong else "strong_negative" if low in strong else "kept"


@pytest.mark.parametrize("model", ["base", "corrupted"])
def test_only_pairs_that_the_judge_scores_apart_are_kept(made: Made, model: str) -> None:
    """Breaks if all pairs are kept, poles are exchanged, or answers without a score count as incoherent."""
    expected = expected_ends(made, model)
    found = ModelSpace.load(made.folder / "space", model).config["kept"]
    assert {trait: {k: n for k, n in counts.items() if n} for trait, counts in found.items()} == expected
    assert expected["evil"] == {"unscored": 8, "kept": 24}
    assert expected["loud"]["strong_negative"] > 0 < expected["rude"]["incoherent"]
    assert expected["loud"]["kept"] == expected["rude"]["kept"] == 0


def test_directions_come_from_kept_pairs(made: Made) -> None:
    """Twelve questions are left of evil; loud and rude have no direction of answers, but one of prompts."""
    space = ModelSpace.load(made.folder / "space", "base")
    hook = space.config["best_hook"]["answer"]
    answer, prompt = (space.directions(at, hook) for at in ("answer", "last_prompt"))
    assert {"loud", "rude"} <= set(answer.config["left_out"])
    assert set(prompt.vectors) == set(TRAITS)
    assert (answer.config["questions"]["evil"], prompt.config["questions"]["evil"]) == (12, 16)


def test_the_summary_says_who_judged_and_what_became_of_pairs(made: Made) -> None:
    assert made.found["judge"] == "language model planted"
    expected = expected_ends(made, "corrupted")
    ends = {end: sum(counts[end] for counts in expected.values()) for end in ENDS}
    assert made.found["models"]["corrupted"]["ends"] == ends
    console = Console(file=io.StringIO(), width=200)
    print_extract(made.found, console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "judge: language model planted" in printed
    assert f"corrupted: {ends['kept']} of 160 pairs of answers kept" in printed
    assert f"{ends['unscored']} unscored, {ends['incoherent']} incoherent, {ends['weak_positive']} weak pos" in printed
    asked = read_json(made.folder / "space" / "config.json")["judge"]
    assert asked == {"model": "planted", "samples": None, "least_probability": 0.25}
    assert KEY not in "".join(path.read_text() for path in (made.folder / "space").glob("*.json*"))


def test_a_killed_run_asks_nothing_twice(made: Made, tmp_path: Path) -> None:
    """Also when the server has moved; nor does the other model, which gives the same answers."""
    space = tmp_path / "space"
    shutil.copytree(made.folder / "space", space)
    shutil.rmtree(space / "models")
    before = len(made.served.requests())
    moved = made.judge.model_copy(update={"url": made.served.url + "/"})
    found = made.extract(space, moved)
    assert {**found, "wall_seconds": 0} == {**made.found, "wall_seconds": 0}
    assert len(made.served.requests()) == before
    keys = [json.loads(line)["key"] for line in (space / REPLIES).read_text(encoding="utf-8").splitlines()]
    assert len(keys) == len(set(keys)) == before


def test_the_monitor_takes_the_same_judge(made: Made, tmp_path: Path) -> None:
    """Breaks if nobody judges there, or its replies are not kept in the monitor's folder."""
    space, traits = made.folder / "space", [made.folder / "traits.yaml"]
    config = MonitorConfig(positions=("last_prompt",))
    asked = Asked(made.folder / "run", space, traits=traits, judge=made.judge)
    lab = MonitorLab.of(asked, config, tmp_path, progress=False)
    evil = next(trait for trait in lab.traits if trait.name == "evil")
    found = lab.judge.trait_scores("evil", evil.positive[:2], ["evil+", "evil-"])
    assert found == pytest.approx([90, math.nan], abs=1e-3, nan_ok=True)
    assert (tmp_path / REPLIES).exists()


def test_another_judge_in_the_same_folder(made: Made) -> None:
    other = made.judge.model_copy(update={"samples": 3})
    with pytest.raises(UserError, match="another judge"):
        made.extract(made.folder / "space", other)


def test_a_judge_that_is_not_there_is_known_before_anything_is_sampled(made: Made, tmp_path: Path) -> None:
    away = made.judge.model_copy(update={"url": "http://127.0.0.1:9/v1"})
    with pytest.raises(UserError, match="cannot be reached"):
        made.extract(tmp_path / "space", away)
    assert not (tmp_path / "space" / "answers").exists()
