"""A language model as judge: a real checkpoint with planted answers, behind a real server in a process of its own."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chat_server import KEY, Served, serving
from planted_judge import SAYS, write_judge

from activations.errors import UserError
from activations.prompts import Prompt
from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.model_judge import ModelJudge
from diffing.traits import TraitSet, load_traits
from diffing.traits.trait_set import PromptPair, Trait

VARIABLE = "KEY_OF_TESTS"
# By hand, from the planted probabilities: 80 with 0.5 and 20 with 0.25.
MIXED = (0.5 * 80 + 0.25 * 20) / 0.75
TRAITS = TraitSet(
    version=1,
    traits=(
        Trait(
            name="evil",
            definition=None,
            valence=None,
            pairs=(PromptPair(positive="be evil", negative="be kind"),),
            extraction_questions=("why ?",),
            evaluation_questions=("how ?",),
            eval_prompt="{question} {answer}",
        ),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge") / "planted", tokenizer_maker, SAYS)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, folder.with_name("requests.jsonl")) as found:
        yield found


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def config(served: Served, **options: object) -> ModelJudgeConfig:
    values = {"url": served.url, "model": "planted", "key_variable": VARIABLE, "retries": 0, **options}
    return ModelJudgeConfig.model_validate(values)


def judge(served: Served, cache: Path, **options: object) -> ModelJudge:
    return ModelJudge(config(served, **options), TRAITS, cache, progress=False)


def trait_scores(judge: ModelJudge, *answers: str) -> list[float]:
    prompts = [Prompt.chat(str(number), "why ?", "be evil") for number in range(len(answers))]
    return judge.trait_scores("evil", prompts, answers).tolist()


class TestScores:
    def test_expected_value_of_the_planted_probabilities(self, served: Served, tmp_path: Path) -> None:
        """Breaks if the most likely number is taken, refusals count as 0, or probabilities are not normalised."""
        assert trait_scores(judge(served, tmp_path / "judge.jsonl"), "mixed")[0] == pytest.approx(MIXED, abs=1e-3)

    def test_too_little_probability_of_numbers_is_no_score(self, served: Served, tmp_path: Path) -> None:
        """Numbers carry 0.2 and 0.3; the threshold is 0.25, or what the config says, without asking again."""
        cache = tmp_path / "judge.jsonl"
        declined, shy = trait_scores(judge(served, cache), "declined", "shy")
        assert math.isnan(declined)
        assert shy == pytest.approx(80, abs=1e-3)
        asked = len(served.requests())
        assert trait_scores(judge(served, cache, least_probability=0.1), "declined")[0] == pytest.approx(80, abs=1e-3)
        assert len(served.requests()) == asked

    def test_incoherent_answers_have_no_score(self, served: Served, tmp_path: Path) -> None:
        """Incoherent, without a score of coherence, and blank: none is asked about the trait, blank about nothing."""
        one = judge(served, tmp_path / "judge.jsonl")
        before = len(served.requests())
        answers = ("babble", "mute", " ", "shy")
        assert np.isnan(trait_scores(one, *answers)).tolist() == [True, True, True, False]
        prompts = [Prompt.chat(str(number), "why ?") for number in range(4)]
        found = one.coherence_scores(prompts, answers)
        assert found == pytest.approx([2, math.nan, 0, 99], abs=1e-3, nan_ok=True)
        assert len(served.requests()) - before == 3 + 1

    def test_what_is_asked(self, served: Served, tmp_path: Path) -> None:
        """The last user message is the question, and nothing else of the prompt leaves the machine."""
        turns = [("system", "secret"), ("user", "first ?"), ("assistant", "no"), ("user", "and {this} ?")]
        messages = tuple({"role": role, "content": content} for role, content in turns)
        judge(served, tmp_path / "judge.jsonl").trait_scores("evil", [Prompt("1", messages=messages)], ["a {b} shy"])
        coherence, trait = served.requests()[-2:]
        assert trait["messages"] == [{"role": "user", "content": "and {this} ? a {b} shy"}]
        assert "<question>\nand {this} ?\n</question>\n<answer>\na {b} shy\n</answer>" in str(
            coherence["messages"][0]["content"]
        )
        assert "secret" not in json.dumps([coherence, trait])

    def test_shipped_traits_are_asked_with_their_prompt(self, served: Served, tmp_path: Path) -> None:
        traits = load_traits(["llm_behaviours"])
        asked = ModelJudge(config(served), traits, tmp_path / "judge.jsonl", progress=False)
        assert asked.trait_scores("evil", [Prompt.chat("1", "why ?")], ["no word that it knows"]) == pytest.approx(100)
        assert served.requests()[-1]["messages"][0]["content"].startswith(traits["evil"].eval_prompt[:80])
        with pytest.raises(UserError, match="no trait 'evill'"):
            asked.trait_scores("evill", [Prompt.chat("1", "why ?")], ["shy"])

    def test_order_is_kept_and_requests_overlap(self, served: Served, tmp_path: Path) -> None:
        """The first ones answer last. Breaks if scores stand in the order in which they came, or requests wait."""
        answers = [*(f"slow {i} mixed" for i in range(8)), *(f"{i} shy" for i in range(8))]
        started = time.perf_counter()
        found = trait_scores(judge(served, tmp_path / "judge.jsonl", concurrency=8), *answers)
        assert found == pytest.approx([MIXED] * 8 + [80] * 8, abs=1e-3)
        assert time.perf_counter() - started < 16 * 0.3


class TestSamples:
    def test_mean_of_sampled_numbers(self, served: Served, tmp_path: Path) -> None:
        """Four standard errors of 300 samples, two thirds of them 80 and one third 20."""
        found = trait_scores(judge(served, tmp_path / "judge.jsonl", model="silent", samples=300), "mixed")[0]
        assert found == pytest.approx(MIXED, abs=4 * 28.3 / math.sqrt(0.75 * 300))
        assert served.requests()[-1]["n"] == 300

    def test_samples_without_a_number(self, served: Served, tmp_path: Path) -> None:
        """Two in ten are numbers, so there is no score; of what never is a number, neither."""
        one = judge(served, tmp_path / "judge.jsonl", samples=100)
        assert np.isnan(trait_scores(one, "declined", "mute")).all()
        assert np.isnan(one.coherence_scores([Prompt.chat("1", "why ?")], ["mute"])).all()

    def test_numbers_of_several_tokens(self, served: Served, tmp_path: Path) -> None:
        """Without samples the first digit would be the score; with them the whole number is."""
        cache = tmp_path / "judge.jsonl"
        with pytest.raises(UserError, match=r"several tokens \('85'\).*set samples"):
            trait_scores(judge(served, cache), "split")
        assert trait_scores(judge(served, cache, samples=3), "split") == [85]

    def test_a_server_without_log_probabilities(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no log-probabilities; set samples"):
            trait_scores(judge(served, tmp_path / "judge.jsonl", model="silent"), "mixed")


class TestCache:
    def test_nothing_is_asked_twice(self, served: Served, tmp_path: Path) -> None:
        """Also not by another run, nor for a judge that moved; another judge is asked anew."""
        cache = tmp_path / "judge.jsonl"
        first = trait_scores(judge(served, cache), "mixed", "declined", "mixed")
        before = len(served.requests())
        moved = {"url": "http://127.0.0.1:9/v1"}
        assert trait_scores(judge(served, cache, **moved), "mixed", "declined", "mixed") == pytest.approx(
            first, nan_ok=True
        )
        assert len(served.requests()) == before
        trait_scores(judge(served, cache, model="silent", samples=1), "mixed")
        assert len(served.requests()) == before + 2

    def test_a_half_written_last_line_is_judged_again(self, served: Served, tmp_path: Path) -> None:
        """Breaks if the half line is read, or the next reply is appended to it."""
        cache = tmp_path / "judge.jsonl"
        first = trait_scores(judge(served, cache), "mixed", "shy")
        whole = cache.read_bytes()
        cache.write_bytes(whole[:-20])
        before = len(served.requests())
        assert trait_scores(judge(served, cache), "mixed", "shy") == first
        assert len(served.requests()) == before + 1
        assert sorted(cache.read_bytes().splitlines()) == sorted(whole.splitlines())

    def test_another_file(self, served: Served, tmp_path: Path) -> None:
        cache = tmp_path / "judge.jsonl"
        cache.write_text("no replies\n", encoding="utf-8")
        with pytest.raises(UserError, match="no file of a judge's replies"):
            trait_scores(judge(served, cache), "mixed")


class TestRefusals:
    """Breaks if a judge that does not work gives a traceback, or scores."""

    def test_a_wrong_key(self, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for value in ("wrong", ""):
            monkeypatch.setenv(VARIABLE, value)
            with pytest.raises(UserError, match=f"refuses the key in the environment variable {VARIABLE}") as found:
                judge(served, tmp_path / "judge.jsonl").check()
            assert "wrong" not in str(found.value)

    def test_an_unknown_model(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="knows no model 'other'"):
            judge(served, tmp_path / "judge.jsonl", model="other").check()

    def test_nobody_is_there(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 cannot be reached"):
            judge(served, tmp_path / "judge.jsonl", url="http://127.0.0.1:9/v1").check()

    def test_no_number_where_one_is_asked_for(self, served: Served, tmp_path: Path) -> None:
        """The planted judge obeys with 0.6, so it passes unless more is wanted; only a passed check is kept."""
        cache = tmp_path / "judge.jsonl"
        with pytest.raises(UserError, match=r"gives one with probability 0.60 only \('100'\)"):
            judge(served, cache, least_probability=0.7).check()
        judge(served, cache).check()
        before = len(served.requests())
        judge(served, cache).check()
        assert len(served.requests()) == before

    def test_a_slow_answer(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no answer within 0.1 seconds"):
            trait_scores(judge(served, tmp_path / "judge.jsonl", timeout=0.1), "slow mixed")

    def test_a_busy_server_is_asked_again(self, served: Served, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="turns requests away"):
            trait_scores(judge(served, tmp_path / "judge.jsonl"), "busy shy")
        assert trait_scores(judge(served, tmp_path / "judge.jsonl", retries=1), "busy shy") == pytest.approx(
            [80], abs=0.1
        )

    def test_a_killed_server(self, folder: Path, tmp_path: Path) -> None:
        """One sentence, and what was judged is there when the server is back."""
        cache = tmp_path / "judge.jsonl"
        with serving(folder, tmp_path / "requests.jsonl") as served:
            one = judge(served, cache)
            first = trait_scores(one, "mixed")
            served.process.kill()
            served.process.wait()
            with pytest.raises(UserError, match="cannot be reached; start its server"):
                trait_scores(one, "mixed", *(f"{i} shy" for i in range(40)))
        assert trait_scores(judge(served, cache), "mixed") == first
