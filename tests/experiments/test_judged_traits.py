"""`trait-directions` with a language model as judge: planted models answer, a planted judge behind a server scores."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chat_server import KEY, Served, serving
from planted_judge import COHERENT, OTHERWISE, SAYS, write_judge
from planted_traits import TRAITS, planted, write_model, write_trait_run, write_traits

from activations.artefact import read_json
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.personality.model_space import ModelSpace
from diffing.traits import contrastive_prompts, load_traits
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.frame.lab import REPLIES, Lab
from experiments.monitor.config import MonitorConfig
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun
from experiments.trait_directions.config import TraitDirectionsConfig
from experiments.trait_directions.experiment import EXPERIMENT

VARIABLE = "OPENAI_API_KEY"
SMALL = TraitDirectionsConfig(positions=("answer", "last_prompt"), samples=2, max_new_tokens=1, splits=10, rows=40)
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
    """A finished run, its trait file, and the server of the judge."""

    folder: Path
    served: Served

    @property
    def space(self) -> Path:
        return self.folder / "run-trait-directions"

    def inputs(self, url: str | None = None, samples: int | None = None) -> Inputs:
        judge = {"judge_url": url or self.served.url, "judge_model": "planted", "judge_samples": samples}
        return Inputs.model_validate(
            {"run": self.folder / "run", "traits": (str(self.folder / "traits.yaml"),), **judge}
        )

    def extract(self, inputs: Inputs, out: Path | None = None) -> Result:
        return conduct(EXPERIMENT, inputs, SMALL, Options(out=out, quiet=True, wandb="disabled"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("judged")
    base = write_model(folder / "base", tokenizer_maker, planted(1))
    write_trait_run(folder / "run", base, base)
    write_traits(folder / "traits.yaml")
    write_judge(folder / "judge", tokenizer_maker, JUDGE)
    with pytest.MonkeyPatch.context() as patch, serving(folder / "judge", folder / "requests.jsonl") as served:
        patch.setenv(VARIABLE, KEY)
        yield Made(folder, served)


@pytest.fixture(scope="module")
def found(made: Made) -> Result:
    return made.extract(made.inputs())


def expected_ends(made: Made, model: str) -> dict[str, Counter[str]]:
    """Trait -> how many pairs meet which end, from the words that the model said and what the judge thinks of them."""
    lines = (made.space / "answers" / f"{model}.jsonl").read_text(encoding="utf-8").splitlines()
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
@pytest.mark.usefixtures("found")
def test_only_pairs_that_the_judge_scores_apart_are_kept(made: Made, model: str) -> None:
    """Breaks if all pairs are kept, poles are exchanged, or answers without a score count as incoherent."""
    expected = expected_ends(made, model)
    kept = ModelSpace.load(made.space, model).config["kept"]
    assert {trait: {k: n for k, n in counts.items() if n} for trait, counts in kept.items()} == expected
    assert expected["evil"] == {"unscored": 8, "kept": 24}
    assert expected["loud"]["strong_negative"] > 0 < expected["rude"]["incoherent"]
    assert expected["loud"]["kept"] == expected["rude"]["kept"] == 0


@pytest.mark.usefixtures("found")
def test_directions_come_from_kept_pairs(made: Made) -> None:
    """Twelve questions are left of evil; loud and rude have no direction of answers, but one of prompts."""
    space = ModelSpace.load(made.space, "base")
    hook = space.config["best_hook"]["answer"]
    answer, prompt = (space.directions(at, hook) for at in ("answer", "last_prompt"))
    assert {"loud", "rude"} <= set(answer.config["left_out"])
    assert set(prompt.vectors) == set(TRAITS)
    assert (answer.config["questions"]["evil"], prompt.config["questions"]["evil"]) == (12, 16)


def test_the_summary_says_who_judged_and_what_became_of_pairs(made: Made, found: Result) -> None:
    assert found.summary["judge"] == "language model planted"
    expected = expected_ends(made, "corrupted")
    ends = {end: sum(counts[end] for counts in expected.values()) for end in ENDS}
    assert found.summary["models"]["corrupted"]["ends"] == ends
    said = "\n".join(found.sentences)
    assert "Judge: language model planted." in said
    assert f"corrupted: {ends['kept']} of 160 pairs of answers kept" in said
    assert f"{ends['unscored']} unscored, {ends['incoherent']} incoherent, {ends['weak_positive']} weak pos" in said
    asked = read_json(made.space / "config.json")["judge"]
    assert asked == {"model": "planted", "samples": None, "least_probability": 0.25}
    assert KEY not in "".join(path.read_text() for path in made.space.glob("*.json*"))


def test_a_killed_run_asks_nothing_twice(made: Made, found: Result, tmp_path: Path) -> None:
    """Also when the server has moved; nor does the other model, which gives the same answers."""
    space = tmp_path / "space"
    shutil.copytree(made.space, space)
    shutil.rmtree(space / "models")
    before = len(made.served.requests())
    again = made.extract(made.inputs(made.served.url + "/"), space)
    assert {**again.summary, "wall_seconds": 0} == {**found.summary, "wall_seconds": 0}
    assert len(made.served.requests()) == before
    keys = [json.loads(line)["key"] for line in (space / REPLIES).read_text(encoding="utf-8").splitlines()]
    assert len(keys) == len(set(keys)) == before


def test_the_monitor_takes_the_same_judge(made: Made, tmp_path: Path) -> None:
    """Breaks if nobody judges there, or its replies are not kept in the monitor's folder."""
    run, config = FinishedRun.load(made.folder / "run"), MonitorConfig(positions=("last_prompt",))
    lab = Lab(run, made.inputs(), config, RunFolder(tmp_path, {}, False, print), progress=False)
    evil = next(trait for trait in lab.traits if trait.name == "evil")
    scores = lab.require_trait_judge().trait_scores("evil", evil.positive[:2], ["evil+", "evil-"])
    assert scores == pytest.approx([90, math.nan], abs=1e-3, nan_ok=True)
    assert (tmp_path / REPLIES).exists()


def test_another_judge_in_the_same_folder(made: Made, found: Result) -> None:
    with pytest.raises(UserError, match="another judge"):
        made.extract(made.inputs(samples=3))


def test_a_judge_that_is_not_there_is_known_before_anything_is_sampled(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ModelJudgeConfig(url="http://127.0.0.1:9/v1", model="planted", retries=0)
    monkeypatch.setattr(Inputs, "judge", away)  # no command sets retries, which take a while
    with pytest.raises(UserError, match="cannot be reached"):
        made.extract(made.inputs(), tmp_path / "space")
    assert not (tmp_path / "space" / "answers").exists()
