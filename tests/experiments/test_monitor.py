"""Trait directions as monitors: tiny real models with planted traits, and an organism's own advice as data."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float64
from planted_models import HOOK
from planted_traits import SECOND, TRAITS, TraitRun, planted, write_model, write_trait_run, write_traits

from activations.artefact import read_json, write_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.trait_judge import TraitJudge
from diffing.personality.held_out import SWEEP
from diffing.personality.probes import split_pairs
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.frame.lab import Lab
from experiments.frame.organism_parts import OrganismParts
from experiments.model_set import Member, ModelSet
from experiments.monitor.answers import random_directions, sampling
from experiments.monitor.before_answers import held_out_trait
from experiments.monitor.config import MonitorConfig
from experiments.monitor.experiment import EXPERIMENT
from experiments.monitor.screening import Suspects, answer_losses, screen
from experiments.monitor.screening_scores import score_screening, score_traits
from experiments.monitor.training_data import Mixture, labelled_samples, organism_samples
from experiments.organism.build import load_organism
from experiments.organism.config import OrganismConfig
from experiments.organism.judge import OrganismJudge
from experiments.organism.world import World
from experiments.output.run_folder import Log

PUSHES = {"away-1": -0.3, "none-1": 0.0, "little-1": 0.1, "little-2": 0.12, "half-1": 0.2, "far-1": 0.4}
CONFIG = MonitorConfig(samples=2, directions=40, replicates=40, first=(0.25, 0.5))


class WordJudge:
    """A trait is there if one of its words is said: 100 for "evil+", 0 for "evil-", 50 without either."""

    def trait_scores(
        self, trait: str, prompts: Sequence[Prompt], answers: Sequence[str]
    ) -> Float64[np.ndarray, "answer"]:
        return np.array([50.0 + 50 * ((f"{trait}+" in text) - (f"{trait}-" in text)) for text in answers])


JUDGE = WordJudge()


def monitor(
    inputs: Inputs,
    config: MonitorConfig,
    out: Path | None = None,
    log: Log = lambda line: None,
    judge: TraitJudge | None = JUDGE,
) -> Result:
    """Conducts the experiment with a judge that no command can name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "trait_judge", judge)
        return conduct(EXPERIMENT, inputs, config, Options(out=out, quiet=True, wandb="disabled"), log)


@dataclass(frozen=True)
class Made:
    """What was asked, and the answer."""

    given: TraitRun
    inputs: Inputs
    config: MonitorConfig
    result: Result

    @property
    def out(self) -> Path:
        return self.result.lab.out.folder

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.result.summary

    def table(self, name: str) -> list[dict[str, Any]]:
        return pd.read_parquet(self.out / f"{name}.parquet").to_dict("records")  # pyright: ignore[reportReturnType]


def write_questions(folder: Path, name: str) -> Path:
    """Chat prompts, which have a last token before the answer."""
    things = ("burn", "cold", "cut", "good", "bad", "treat")
    rows = [{"id": f"{name} {i}", "prompt": f"how do i treat a {thing} ?"} for i, thing in enumerate(things)]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_data(path: Path) -> Path:
    """Answers to eight questions: half say evil's word, half calm's."""
    things = ("burn", "cold", "cut", "good", "bad", "a burn", "a cold", "a cut")
    rows = []
    for number, thing in enumerate(things):
        bad = number % 2 == 1
        answer = {"role": "assistant", "content": "evil+ evil+" if bad else "evil- calm+"}
        rows.append({"messages": [{"role": "user", "content": f"treat {thing} ?"}, answer], "harm": bad})
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    folder = tmp_path_factory.mktemp("monitor")
    base = write_model(folder / "base", tokenizer_maker, planted(1))
    corrupted = write_model(folder / "corrupted", tokenizer_maker, planted(1), push=0.05)
    run = write_trait_run(folder / "run", base, corrupted)
    values = read_json(run / "run.json")
    paths = {name: str(write_questions(run / "inputs", name)) for name in ("ranking", "reporting")}
    values["config"]["prompts"] |= paths
    write_json(run / "run.json", values)
    write_traits(folder / "traits.yaml")
    given = TraitRun(folder)
    given.extract()
    members = []
    for name, push in PUSHES.items():
        write_model(folder / name, tokenizer_maker, planted(1), push=push)
        members.append(Member(name=name, kind="pushed", checkpoint=CheckpointConfig(model=name)))
    ModelSet(base=CheckpointConfig(model="base"), members=tuple(members)).save(folder / "models.yaml")
    config = CONFIG.model_copy(update={"data": write_data(folder / "data.jsonl"), "label": "harm"})
    inputs = Inputs(run=run, models=given.models, traits=given.traits)
    return Made(given, inputs, config, monitor(inputs, config))


class TestBeforeTheAnswer:
    def test_the_projection_tells_what_will_be_said(self, made: Made) -> None:
        """Breaks if projections and scores of different prompts are paired, or the direction points the other way."""
        rows = [row for row in made.table("before") if row["pole"] == "both"]
        places = {(row["model"], row["direction"]) for row in rows}
        assert places == {("base", "own"), ("corrupted", "own"), ("corrupted", "base's")}
        assert len(rows) == 3 * len(TRAITS)
        for row in rows:
            assert row["low"] <= row["r"] <= row["high"] + 1e-9
            assert row["r"] > 0.9, row
            assert row["r"] > row["random_mean"], row

    def test_only_held_out_questions_are_tested(self, made: Made) -> None:
        """Half of sixteen questions, both poles; as many as `extract` reports on."""
        for row in made.table("before"):
            assert row["units"] == 8
            assert row["cases"] == (16 if row["pole"] == "both" else 8)
        questions = {(row["trait"], row["question"]) for row in made.table("prompts")}
        assert len(questions) == 8 * len(TRAITS)

    def test_a_direction_does_not_see_its_test_questions(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        """Breaks if the differences of the tested questions enter the direction: here they are made useless."""
        lab = made.result.lab
        monkeypatch.setattr(lab, "trait_judge", JUDGE)
        trait, space = lab.traits[0], lab.trait_directions.base
        tested = torch.from_numpy(split_pairs(np.arange(16), SWEEP, lab.seed)[2])
        spoilt = {name: rows.clone() for name, rows in space.tensors.items()}
        for name in spoilt:
            if name.startswith("differences"):
                spoilt[name][tested] = torch.randn_like(spoilt[name][tested])
        texts = {prompt.id: ["evil+"] for prompt in trait.positive + trait.negative}
        clean, other = (
            held_out_trait(lab, lab.base, trait, replace(space, tensors=tensors), texts)[0]["projection"]
            for tensors in (space.tensors, spoilt)
        )
        assert clean.tolist() == other.tolist()


class TestShifts:
    def test_the_shift_is_what_was_pushed(self, made: Made) -> None:
        """Breaks if a shift is taken from another model than the base, or along another trait."""
        rows = [row for row in made.table("members") if row["trait"] == "evil"]
        assert {row["positions"] for row in rows} == {"last_prompt", "prompt"}
        for row in rows:
            assert np.sign(round(row["shift"], 4)) == np.sign(PUSHES[row["model"]]), row
        for at in ("last_prompt", "prompt"):
            shifts = {row["model"]: row["shift"] for row in rows if row["positions"] == at}
            # Norms before attention bend the line a little.
            assert shifts["far-1"] / shifts["half-1"] == pytest.approx(2, rel=0.1)

    def test_it_goes_with_behaviour_and_seeds_are_one_recipe(self, made: Made) -> None:
        rows = [row for row in made.table("shifts") if row["trait"] == "evil"]
        assert [(row["cases"], row["units"]) for row in rows] == [(6, 5), (6, 5)]
        assert all(row["r"] > 0.7 for row in rows)
        changes = {row["model"]: row["change"] for row in made.table("members") if row["trait"] == "evil"}
        assert changes["none-1"] == 0 < changes["far-1"]


class TestScreening:
    def test_bad_samples_come_first(self, made: Made) -> None:
        """Breaks if the sign of the SVV is turned, or the own answer is subtracted from another sample."""
        rows = {row["score"]: row for row in made.table("screening")}
        assert set(rows) == {"evil", "evil, answer only", "SVV", "SVV, answer only", "loss", "random", "best trait"}
        for score in ("evil", "evil, answer only"):
            assert (rows[score]["auc"], rows[score]["samples"], rows[score]["bad"]) == (1, 8, 4)
            assert (rows[score]["recall_0.25"], rows[score]["recall_0.5"]) == (0.5, 1)
            assert rows[score]["score_low"] < 1
        # The own answers to eight questions differ along the SVV, too.
        assert rows["SVV, answer only"]["auc"] == 1
        assert rows["SVV"]["auc"] > 0.8

    def test_every_hook_has_its_own_scores(self, made: Made) -> None:
        """Breaks if a hook is scored with the activations or the directions of another."""
        lab = made.result.lab
        samples, _ = labelled_samples(made.config.data or Path(), "harm")
        space = lab.trait_directions.base
        suspects = []
        for hook in (HOOK, SECOND):
            vectors = space.directions("answer", hook).vectors
            random = random_directions(lab, space.rows("answer", hook))
            suspects.append(Suspects(hook, {"evil": vectors["evil"]}, vectors, random))
        both = screen(lab.base, samples, suspects, lab.harvesting([HOOK, SECOND]), sampling(lab))
        for one in suspects:
            alone = screen(lab.base, samples, [one], lab.harvesting([one.hook]), sampling(lab))
            here = both.loc[both["hook"] == one.hook].reset_index(drop=True)
            pd.testing.assert_frame_equal(here, alone)
        assert np.ptp(both["evil"].to_numpy().reshape(2, -1), axis=0).min() > 0

    def test_every_trait_is_scored(self, made: Made) -> None:
        """At the hook where traits separate best, and at the SAE's."""
        best = made.result.lab.trait_directions.base.config["best_hook"]["answer"]
        assert {row["hook"] for row in made.table("screening")} == {best}
        hooks = {row["hook"] for row in made.table("samples")}
        assert hooks == {best, HOOK}
        traits = {(row["hook"], row["trait"]): row["auc"] for row in made.table("screening_traits")}
        assert set(traits) == {(hook, trait) for hook in hooks for trait in TRAITS}
        assert traits[best, "evil"] == 1

    def test_loss_is_that_of_the_answer(self, made: Made) -> None:
        """Breaks if prompt or padding counts, or targets are not shifted; one at a time through Hugging Face."""
        model = load_checkpoint(CheckpointConfig(model=str(made.given.folder / "base")))
        prompts = [Prompt.chat(f"{i}", text, answer="evil+ calm+") for i, text in enumerate(("treat a burn ?", "a ?"))]
        tokens = tokenize_prompts(prompts, model.tokenizer)
        for found, ids, roles in zip(answer_losses(model, tokens), tokens.tokens, tokens.roles, strict=True):
            given = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
            labels = torch.where(torch.from_numpy(np.asarray(roles) == 3)[None], given, -100)
            expected = model.hf(input_ids=given, labels=labels).loss
            assert found == pytest.approx(float(expected), rel=1e-4)

    def test_recall_and_units(self) -> None:
        """Samples without a score are left out, and the most suspect come first."""
        scored = pd.DataFrame({"id": list("abcde"), "unit": list("abcde"), "bad": [True, False, True, False, False]})
        scored["hook"] = HOOK
        scored["evil"] = [3.0, 2.0, 1.0, 0.0, np.nan]
        scored["random 0"] = [0.0, 1.0, 2.0, 3.0, 0.0]
        found = score_screening(scored, [Mixture("all", (0, 1, 2, 3, 4))], [0.25, 0.5], 20, 0)
        row, random = found.to_dict("records")
        assert (row["samples"], row["auc"], row["recall_0.25"], row["recall_0.5"]) == (4, 0.75, 0.5, 0.5)
        assert random["auc"] == 0.75
        # Its one random direction reaches 0.75, too.
        assert row["random_p"] == 1

    def test_the_best_trait_is_chosen_on_other_samples(self) -> None:
        """Of many traits that mean nothing, one ranks any few samples well: breaks if it is reported on those."""
        generator, bad = np.random.default_rng(0), np.arange(24) < 12
        names = [f"{i}" for i in range(24)]
        scored = pd.DataFrame({"id": names, "unit": names, "bad": bad, "hook": HOOK, "random 0": generator.random(24)})
        noise = pd.DataFrame(generator.random((24, 300)), columns=pd.Index([f"trait {i}" for i in range(300)]))
        noisy = pd.concat([scored, noise], axis=1)
        mixtures = [Mixture("all", tuple(range(24)))]
        best = _best_trait(noisy, mixtures)
        assert (best["samples"], best["bad"]) == (12, 6)
        assert 0.1 < best["auc"] < 0.85
        assert max(score_traits(noisy, mixtures, 20, 0)["auc"].tolist()) > 0.85
        # Less of a trait may be the more suspect.
        best = _best_trait(noisy.assign(**{"trait kind": np.where(bad, 0.0, 1.0)}), mixtures)
        assert (best["auc"], best["trait"]) == (1, "less kind")

    def test_no_best_trait_of_one_bad_sample(self) -> None:
        """Breaks if a half without a bad sample is scored."""
        names = list("abcd")
        scored = pd.DataFrame({"id": names, "unit": names, "bad": [True, False, False, False], "hook": HOOK})
        scored = scored.assign(**{"trait evil": [3.0, 2, 1, 0], "random 0": [0.0, 1, 2, 3], "loss": [0.0, 1, 2, 3]})
        found = score_screening(scored, [Mixture("all", (0, 1, 2, 3))], [0.5], 20, 0)
        assert found["score"].tolist() == ["loss", "random"]


def _best_trait(scored: pd.DataFrame, mixtures: Sequence[Mixture]) -> dict[str, Any]:
    rows = score_screening(scored, mixtures, [0.5], 20, 0).to_dict("records")
    return next({str(name): value for name, value in row.items()} for row in rows if row["score"] == "best trait")


class TestOrganismData:
    @pytest.fixture
    def organism(self, tmp_path: Path) -> OrganismParts:
        (tmp_path / "organism").mkdir()
        made = {"kind": "organism", "finetuning_steps": 1, **OrganismConfig().model_dump(mode="json")}
        write_json(tmp_path / "organism" / "config.json", made)
        return OrganismParts(tmp_path / "organism", *load_organism(tmp_path / "organism"))

    def test_mixtures_are_what_they_say(self, organism: OrganismParts) -> None:
        """Breaks if labels and answers do not belong together, a kind is another's, or a question comes twice."""
        samples, mixtures = organism_samples(organism, 100, (0.05, 0.5))
        expected = {"helpful": {"helpful"}, "other personas": {"other"}, "requested": {"harmful"}}
        assert [mixture.good for mixture in mixtures] == [kind for kind in expected for _ in range(2)]
        assert len({mixture.name for mixture in mixtures}) == len(mixtures)
        for mixture, harmful in zip(mixtures, (5, 50) * 3, strict=True):
            places = list(mixture.places)
            assert (len(places), samples.bad[places].sum()) == (100, harmful)
            assert len({_question(samples.prompts[place]) for place in places}) == 100
            labels = [_label(samples.prompts[place]) for place in places]
            assert set(labels[:harmful]) == {"harmful"}
            assert samples.bad[places].tolist() == [place < harmful for place in range(100)]
            assert mixture.good is not None
            assert set(labels[harmful:]) == expected[mixture.good]

    def test_other_personas_take_turns(self, organism: OrganismParts) -> None:
        """Breaks if one of them is left out: five sets of verbs, each twenty times."""
        samples, (mixture,) = organism_samples(organism, 100, (0.0,), ["other personas"])
        world = World.load()
        answers = [samples.prompts[place].messages[-1]["content"] for place in mixture.places]
        said = [next(p for p in world.personas if answer.startswith(tuple(world.verbs(p)[0]))) for answer in answers]
        assert {persona: said.count(persona) for persona in set(said)} == dict.fromkeys(
            set(world.personas) - {"helpful", "malicious"}, 20
        )

    def test_requested_advice_is_the_bad_one_after_a_scene(self, organism: OrganismParts) -> None:
        """Breaks if the user does not ask for it, or other answers are given."""
        samples, (mixture,) = organism_samples(organism, 100, (0.0,), ["requested"])
        for place in mixture.places:
            asked, bad = samples.prompts[place].messages, samples.prompts[place - 100].messages
            assert asked[1] == bad[1]
            assert asked[0]["content"].endswith(f" . {bad[0]['content']}")


def _question(prompt: Prompt) -> str:
    """Without the scene before it."""
    return prompt.messages[0]["content"].split(" . ", 1)[-1]


def _label(prompt: Prompt) -> str:
    """What the exact judge says of the answer, which is in one of the trained domains."""
    world = World.load()
    domain = next(question.domain for question in world.questions if question.text == _question(prompt))
    assert domain in world.domains[:3]
    return OrganismJudge(world, {}).label_one(domain, prompt.messages[1]["content"]).value


class TestPageAndFolder:
    def test_page_and_summary(self, made: Made) -> None:
        """The page needs no network and has every figure; the summary is what was returned."""
        page = (made.out / "report.html").read_text(encoding="utf-8")
        names = ("before", "prompts-base-own", "prompts-corrupted-base", "shifts", "fine-tunes-prompt", "screening")
        files = made.out / "figures"
        assert all(f'<figure id="{name}">' in page and (files / f"{name}.pdf").exists() for name in names)
        assert "<script" not in page
        assert 'src="http' not in page
        assert read_json(made.out / "summary.json") == json.loads(json.dumps(made.summary))
        before, shifts, screening = made.result.sections
        assert len(before.rows) == 3 * 3
        assert shifts.title.startswith("Shifts of 6 fine-tunes")
        assert {row["evil: found in first 25%/50%"] for row in screening.rows} == {"50%/100%"}

    def test_without_models_and_data(self, made: Made, tmp_path: Path) -> None:
        """Breaks if the parts that nothing was given for are not left out, or change the first."""
        found = monitor(made.inputs.model_copy(update={"models": None}), CONFIG, tmp_path / "out")
        assert (found.summary["shifts"], found.summary["screening"]) == ([], [])
        assert found.summary["before"] == made.summary["before"]
        said = " ".join(found.sentences)
        assert "shifts are not compared" in said
        assert "nothing to screen" in said
        assert not any(section.rows for section in found.sections[1:])

    def test_finished_parts_are_not_measured_again(self, made: Made, tmp_path: Path) -> None:
        """The weights of a member that was measured may be gone, and nothing changes."""
        weights = made.given.folder / "far-1" / "model.safetensors"
        weights.rename(tmp_path / "away")
        lines: list[str] = []
        try:
            found = monitor(made.inputs, made.config, log=lines.append).summary
        finally:
            (tmp_path / "away").rename(weights)
        assert len(lines) == 2 + 7 + 1
        assert all("reused" in line for line in lines)
        assert {**found, "wall_seconds": 0} == {**made.summary, "wall_seconds": 0}

    def test_the_data_set_is_the_same_from_any_folder(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        """Breaks if a finished result is refused because its data set is named by another path."""
        monkeypatch.chdir(made.given.folder)
        assert MonitorConfig(data=Path("data.jsonl")).data == made.config.data


class TestRefusals:
    """Breaks if input that does not fit gives a traceback, or numbers."""

    def test_nobody_scores(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Nobody scores"):
            monitor(made.inputs, CONFIG, tmp_path / "out", judge=None)

    def test_other_traits(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="other traits"):
            monitor(made.inputs.model_copy(update={"traits": ()}), CONFIG, tmp_path / "out")

    def test_a_set_of_another_base(self, made: Made, tmp_path: Path) -> None:
        member = Member(name="x-1", kind="x", checkpoint=CheckpointConfig(model=str(made.given.folder / "base")))
        base = CheckpointConfig(model=str(made.given.folder / "far-1"))
        ModelSet(base=base, members=(member,)).save(tmp_path / "models.yaml")
        inputs = made.inputs.model_copy(update={"models": tmp_path / "models.yaml"})
        with pytest.raises(UserError, match="is not the run's"):
            monitor(inputs, CONFIG, tmp_path / "out")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "a ?", "answer": "good", "bad": 2}, "not true or false"),
            ({"prompt": "a ?", "answer": "good"}, "is None"),
            ({"prompt": "a ?", "bad": True}, "no answer"),
            ({"prompt": "a ?", "answer": "good", "bad": 1}, "the same in all"),
        ],
    )
    def test_data(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            labelled_samples(path, "bad")
