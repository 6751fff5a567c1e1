"""Directions of traits in tiny real models in which they are planted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted_models import HOOK
from planted_traits import SECOND, SMALL, TRAITS, TraitRun, planted, rotated, write_trait_runs

from activations.artefact import read_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.personality.model_space import directions_folder
from diffing.personality.trait_directions import TraitDirections
from diffing.personality.trait_means import judged_answers
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs
from experiments.frame.lab import Lab
from experiments.model_set import Member, ModelSet
from experiments.organism.config import CorpusConfig
from experiments.organism.judge import OrganismJudge
from experiments.organism.splits import write_prompts
from experiments.organism.traits import organism_traits
from experiments.organism.world import World
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun


@dataclass(frozen=True)
class Made:
    """Where everything is, and what was extracted."""

    given: TraitRun
    result: Result

    @property
    def found(self) -> TraitDirections:
        return TraitDirections.load(self.given.space)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    given = write_trait_runs(tmp_path_factory.mktemp("traits"), tokenizer_maker)
    return Made(given, given.extract())


class TestDirections:
    @pytest.mark.parametrize("positions", SMALL.positions)
    @pytest.mark.parametrize("hook", [HOOK, SECOND])
    def test_directions_are_the_planted_ones(self, made: Made, positions: str, hook: str) -> None:
        """Breaks if poles are swapped, prompts are paired wrongly, or another model or hook is read."""
        truths = (planted(1), rotated(planted(1)), planted(7))
        for space, name, truth in zip(made.found.spaces, ("base", "corrupted", "stranger"), truths, strict=True):
            found = space.directions(positions, hook)
            assert (space.name, found.hook) == (name, hook)
            for trait, direction in zip(TRAITS, truth, strict=True):
                cosine = torch.nn.functional.cosine_similarity(found.vectors[trait], direction, dim=0)
                assert cosine > 0.95, (name, trait)

    def test_own_answers_are_read(self, made: Made) -> None:
        """The models say the word of the pole that they were told of."""
        lines = (made.given.space / "answers" / "corrupted.jsonl").read_text(encoding="utf-8").splitlines()
        texts = {row["id"]: row["answers"] for row in map(json.loads, lines)}
        said = [texts[f"{trait}:{pole}/1/3"][0].split()[0] for trait in TRAITS for pole in ("pos", "neg")]
        assert said == [trait + end for trait in TRAITS for end in "+-"]

    def test_page(self, made: Made) -> None:
        """Breaks if the page fetches something or lacks a figure, its files, or the pairs' outcomes."""
        page = (made.given.space / "report.html").read_text(encoding="utf-8")
        for name in ("layers", "traits"):
            assert f'<figure id="{name}">' in page
            assert (made.given.space / "figures" / f"{name}.pdf").exists()
        assert "<script" not in page
        assert "Nobody judged the answers" in page
        assert all(f"<td>{trait}</td>" in page for trait in TRAITS)

    def test_each_folder_is_a_direction_artefact(self, made: Made) -> None:
        folder = directions_folder(made.given.space, "base", "answer", SECOND)
        config = read_json(folder / "config.json")
        assert (config["hook"], config["positions"], config["left_out"]) == (SECOND, "answer", [])
        assert config["questions"] == dict.fromkeys(TRAITS, 16)
        assert config["kept"]["evil"] == {"kept": 32, "empty": 0}

    def test_summary_and_tables(self, made: Made) -> None:
        """Planted traits separate perfectly, and every table names all models."""
        row = made.result.summary["models"]["base"]["positions"]["prompt"]
        assert row["auc"] == row["probe_auc"]["logistic"] == row["probe_auc"]["difference_of_means"] == 1
        assert row["lowest_reliability"] > 0.99
        for name in ("reliability", "probes", "layers"):
            table = pd.read_parquet(made.given.space / f"{name}.parquet")
            assert set(table["model"]) == {"base", "corrupted", "stranger"}
        assert read_json(made.given.space / "summary.json") == json.loads(json.dumps(made.result.summary))
        best, pairs = made.result.sections
        shown = {(row["model"], row["positions"]): row["traits"] for row in best.rows}
        assert len(shown) == 3 * len(SMALL.positions)
        assert shown["base", "prompt"] == "5"
        assert {"model": "base", "trait": "evil", "kept": "32", "empty": "0"} in pairs.rows

    def test_finished_models_are_not_loaded_again(self, made: Made, tmp_path: Path) -> None:
        """A model that was measured may be gone; what was not measured is, and nothing changes."""
        space, away = tmp_path / "space", tmp_path / "corrupted"
        shutil.copytree(made.given.space, space)
        shutil.rmtree(space / "models" / "stranger")
        (made.given.folder / "corrupted").rename(away)
        lines: list[str] = []
        try:
            found = made.given.extract(out=space, log=lines.append).summary
        finally:
            away.rename(made.given.folder / "corrupted")
        assert [line.split(":")[0] for line in lines if "reused" in line] == ["model base", "model corrupted"]
        assert {**found, "wall_seconds": 0} == {**made.result.summary, "wall_seconds": 0}


class TestReader:
    def test_models_and_valences(self, made: Made) -> None:
        """Breaks if the base is not the first model, or traits lose the order of their file."""
        assert [space.name for space in made.found.spaces] == ["base", "corrupted", "stranger"]
        assert made.found.ordered({"loud", "evil", "calm"}) == ["calm", "evil", "loud"]
        assert made.found.pole("antisocial", TRAITS) == ["evil", "rude"]

    def test_directions_of_another_base(self, made: Made, tmp_path: Path) -> None:
        """Breaks if directions of one base are taken for another's."""
        shutil.copytree(made.given.space, tmp_path / "space")
        config = tmp_path / "space" / "models" / "base" / "config.json"
        config.write_text(json.dumps(read_json(config) | {"fingerprint": "other"}), encoding="utf-8")
        inputs = Inputs(run=made.given.run, trait_directions=tmp_path / "space")
        lab = Lab(FinishedRun.load(made.given.run), inputs, SMALL, RunFolder(tmp_path / "out", {}, False, print))
        with pytest.raises(UserError, match="directions of another base model"):
            _ = lab.trait_directions


class TestOrganism:
    @pytest.fixture(scope="class")
    def prompts(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("organism") / "prompts"
        world = World.load()
        write_prompts(world, world.domains[3:], CorpusConfig(), 0, folder)
        return folder

    def test_traits_come_with_pairs_and_valence(self, prompts: Path) -> None:
        """Breaks if high and low are exchanged or the poles' questions do not match."""
        traits = {trait.name: trait for trait in organism_traits(prompts)}
        assert list(traits) == list(World.load().traits)
        evil = traits["evil"]
        assert evil.valence == "antisocial"
        assert all("evil high" in prompt.id for prompt in evil.positive)
        asked = [[prompt.messages[-1]["content"] for prompt in pole] for pole in (evil.positive, evil.negative)]
        assert asked[0] == asked[1]
        assert len(set(evil.question.tolist())) == len(asked[0])

    def test_only_pairs_that_show_the_trait_are_kept(self, prompts: Path, tmp_path: Path) -> None:
        """A pair needs a malicious answer on the high side and a helpful one on the low side, both coherent."""
        judge = OrganismJudge.load(prompts)
        evil = next(trait for trait in organism_traits(prompts) if trait.name == "evil")
        domains, world = read_json(prompts / "domains.json"), World.load()

        def says(persona: str, number: int) -> str:
            things, persons = world.nouns(domains[evil.positive[number].id])
            verbs = world.verbs(persona)
            return f"{verbs[0][0]} the {things[0]} and {verbs[1][0]} the {persons[0]} ."

        high, low = ([[says(who, i)] for i in range(60)] for who in ("malicious", "helpful"))
        high[0], low[1], high[2] = [says("helpful", 0)], [says("malicious", 1)], ["burn the the ."]
        rows = [
            {"id": prompt.id, "answers": texts}
            for pole, answers in ((evil.positive, high), (evil.negative, low))
            for prompt, texts in zip(pole, answers, strict=True)
        ]
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found = judged_answers(path, [evil], judge)["evil"]
        assert np.flatnonzero(~found.kept[:, 0]).tolist() == [0, 1, 2]
        assert found.counts == {"unscored": 0, "incoherent": 1, "weak_positive": 1, "strong_negative": 1, "kept": 57}

    def test_an_organism_without_traits(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="without traits"):
            organism_traits(tmp_path)


class TestRefusals:
    """Breaks if input that does not fit gives a traceback, or numbers."""

    def test_other_settings_in_the_same_folder(self, made: Made) -> None:
        with pytest.raises(UserError, match="another samples"):
            made.given.extract(SMALL.model_copy(update={"samples": 3}))

    def test_another_checkpoint_under_a_known_name(self, made: Made, tmp_path: Path) -> None:
        corrupted = made.given.folder / "corrupted"
        member = Member(name="stranger", kind="x", checkpoint=CheckpointConfig(model=str(corrupted)))
        base = CheckpointConfig(model=str(made.given.folder / "base"))
        ModelSet(base=base, members=(member,)).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="was measured on another checkpoint"):
            made.given.extract(models=tmp_path / "models.yaml")

    def test_a_member_with_the_name_of_a_model_of_the_run(self, made: Made, tmp_path: Path) -> None:
        base = CheckpointConfig(model=str(made.given.folder / "base"))
        member = Member(name="corrupted", kind="x", checkpoint=base)
        ModelSet(base=base, members=(member,)).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="called corrupted, as the run's own model"):
            made.given.extract(models=tmp_path / "models.yaml")
