"""The personality space of tiny real models whose traits' directions are planted, and the page that documents it."""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from command import sae_diff
from planted_models import BAD, GOOD, HOOK, TEXT, WIDTH, write_run
from rich.console import Console
from silent_model import silent_model

from activations.artefact import read_json, write_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.personality.config import ExtractionConfig
from diffing.personality.model_space import ModelSpace, directions_folder
from diffing.personality.trait_means import judged_answers
from diffing.tables import where_equal
from experiments.geometry.config import GeometryConfig
from experiments.geometry.experiment import geometry
from experiments.geometry.summary import print_geometry
from experiments.model_set import Member, ModelSet
from experiments.organism.config import CorpusConfig
from experiments.organism.splits import write_prompts
from experiments.organism.traits import organism_traits
from experiments.organism.world import World
from experiments.trait_directions.experiment import extract
from experiments.trait_directions.summary import print_extract

PAGE = Path(__file__).parents[2] / "docs" / "personality-space.md"
VALENCE = {"calm": "prosocial", "kind": "prosocial", "evil": "antisocial", "rude": "antisocial", "loud": "neutral"}
TRAITS = tuple(VALENCE)
EVIL = 5  # axis of the residual stream along which evil lies, so the latent of that number is evil
SECOND = "blocks.1.hook_resid_post"
READINGS = ("answer", "base_answer", "prompt", "last_prompt")
EXTRACT = ExtractionConfig(positions=READINGS, samples=2, splits=10, rows=40)
GEOMETRY = GeometryConfig(permutations=50, replicates=20, draws=20, latents=2)
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *TEXT.split(), "be", *(f"{t}{end}" for t in TRAITS for end in "+-")]


def planted(seed: int) -> torch.Tensor:
    """A direction for each trait [trait width], none along the first axes; evil lies along its own axis."""
    drawn = torch.randn(len(TRAITS), WIDTH, generator=torch.manual_seed(seed))
    drawn[:, : BAD + 1] = 0
    drawn[TRAITS.index("evil")] = torch.eye(WIDTH)[EVIL]
    return torch.nn.functional.normalize(drawn, dim=1)


def rotated(directions: torch.Tensor) -> torch.Tensor:
    """The same geometry elsewhere: axes change places."""
    turned = directions.clone()
    turned[:, BAD + 1 :] = directions[:, BAD + 1 :].roll(4, dims=1)
    return turned


def write_model(folder: Path, tokenizer_maker: Callable, directions: torch.Tensor, push: float = 0.0) -> Path:
    """Every block adds the mean of what was read so far; the word of the trait that the stream points to is said.

    The two words of a trait lie on either side of its direction; `push` moves all other words along evil.
    """
    model = silent_model(len(WORDS), WIDTH, layers=2)
    with torch.no_grad():
        layers: Any = model.model.layers
        for layer in layers:
            layer.self_attn.v_proj.weight.copy_(torch.eye(WIDTH))
            layer.self_attn.o_proj.weight.copy_(torch.eye(WIDTH))
        embedding, said = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:] = 0.05 * torch.randn(embedding.shape, generator=torch.manual_seed(0))
        embedding[:, GOOD] = 1.0
        embedding[:, EVIL] += push
        for direction, trait in zip(directions, TRAITS, strict=True):
            for end, sign in (("+", 1.0), ("-", -1.0)):
                embedding[WORDS.index(trait + end)] = sign * direction
                said[WORDS.index(trait + end)] = 300 * sign * direction
    model.save_pretrained(folder)
    tokenizer_maker(WORDS).save_pretrained(folder)
    return folder


def write_traits(path: Path) -> Path:
    """A trait file: one pair of system prompts a trait, sixteen questions."""
    things = ("burn", "cold", "cut", "good", "bad", "a burn", "a cold", "a cut")
    questions = [f"{start} {thing} ?" for start in ("how do i treat", "do i treat") for thing in things]
    traits = [
        {
            "name": trait,
            "definition": "Planted.",
            "valence": valence,
            "pairs": [{"positive": f"be {trait}+", "negative": f"be {trait}-"}],
            "extraction_questions": questions,
            "evaluation_questions": ["treat ?"],
            "eval_prompt": "{question} {answer}",
        }
        for trait, valence in VALENCE.items()
    ]
    path.write_text(yaml.safe_dump({"version": 1, "traits": traits}), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Made:
    """A finished run, its traits and further models, and what was extracted and compared."""

    folder: Path
    extracted: dict[str, Any]
    compared: dict[str, Any]

    @property
    def space(self) -> Path:
        return self.folder / "space"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    folder = tmp_path_factory.mktemp("personas")
    base = write_model(folder / "base", tokenizer_maker, planted(1))
    write_model(folder / "corrupted", tokenizer_maker, rotated(planted(1)), push=0.05)
    write_model(folder / "stranger", tokenizer_maker, planted(7))
    run = write_run(folder / "run", base)
    values = read_json(run / "run.json")
    values["config"]["corrupted"]["model"] = str(folder / "corrupted")
    write_json(run / "run.json", values)
    write_json(run / "summary.json", {"toxic_latent": {"latent": EVIL}})
    member = Member(name="stranger", kind="other", checkpoint=CheckpointConfig(model="stranger"))
    ModelSet(base=CheckpointConfig(model="base"), members=(member,)).save(folder / "models.yaml")
    traits = write_traits(folder / "traits.yaml")
    found = extract(run, folder / "space", EXTRACT, folder / "models.yaml", [traits], progress=False)
    return Made(folder, found, geometry(folder / "space", folder / "geometry", GEOMETRY, progress=False))


def stability(made: Made, model: str, positions: str, hook: str) -> dict[str, Any]:
    rows = pd.read_parquet(made.folder / "geometry" / "stability.parquet").to_dict("records")
    return next(row for row in rows if (row["model"], row["positions"], row["hook"]) == (model, positions, hook))


class TestExtract:
    @pytest.mark.parametrize("positions", READINGS)
    @pytest.mark.parametrize("hook", [HOOK, SECOND])
    def test_directions_are_the_planted_ones(self, made: Made, positions: str, hook: str) -> None:
        """Breaks if poles are swapped, prompts are paired wrongly, or another model or hook is read."""
        for name, truth in (("base", planted(1)), ("corrupted", rotated(planted(1))), ("stranger", planted(7))):
            found = ModelSpace.load(made.space, name).directions(positions, hook)
            assert found.hook == hook
            for trait, direction in zip(TRAITS, truth, strict=True):
                cosine = torch.nn.functional.cosine_similarity(found.vectors[trait], direction, dim=0)
                assert cosine > 0.95, (name, trait)

    def test_own_answers_are_read(self, made: Made) -> None:
        """The models say the word of the pole that they were told of."""
        lines = (made.space / "answers" / "corrupted.jsonl").read_text(encoding="utf-8").splitlines()
        texts = {row["id"]: row["answers"] for row in map(json.loads, lines)}
        said = [texts[f"{trait}:{pole}/1/3"][0].split()[0] for trait in TRAITS for pole in ("pos", "neg")]
        assert said == [trait + end for trait in TRAITS for end in "+-"]

    def test_page(self, made: Made) -> None:
        """Breaks if the page of the directions fetches something or lacks a figure, its files, or the pairs' ends."""
        page = (made.space / "directions.html").read_text(encoding="utf-8")
        for name in ("layers", "traits"):
            assert f'<figure id="{name}">' in page
            assert (made.space / "figures" / f"{name}.pdf").exists()
        assert "<script" not in page
        assert "Nobody judged the answers" in page
        assert all(f"<td>{trait}</td>" in page for trait in TRAITS)

    def test_each_folder_is_a_direction_artefact(self, made: Made) -> None:
        folder = directions_folder(made.space, "base", "answer", SECOND)
        config = read_json(folder / "config.json")
        assert (config["hook"], config["positions"], config["left_out"]) == (SECOND, "answer", [])
        assert config["questions"] == dict.fromkeys(TRAITS, 16)
        assert config["kept"]["evil"] == {"kept": 32, "empty": 0}

    def test_summary_and_tables(self, made: Made) -> None:
        """Planted traits separate perfectly, and every table names all models."""
        row = made.extracted["models"]["base"]["positions"]["prompt"]
        assert row["auc"] == row["probe_auc"]["logistic"] == row["probe_auc"]["difference_of_means"] == 1
        assert row["lowest_reliability"] > 0.99
        for name in ("reliability", "probes", "layers"):
            table = pd.read_parquet(made.space / f"{name}.parquet")
            assert set(table["model"]) == {"base", "corrupted", "stranger"}
        console = Console(file=io.StringIO(), width=200)
        print_extract(made.extracted, console)
        printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "answers are not filtered" in printed

    def test_finished_models_are_not_loaded_again(self, made: Made, tmp_path: Path) -> None:
        """A model that was measured may be gone; what was not measured is, and nothing changes."""
        space, away = tmp_path / "space", tmp_path / "corrupted"
        shutil.copytree(made.space, space)
        shutil.rmtree(space / "models" / "stranger")
        (made.folder / "corrupted").rename(away)
        lines: list[str] = []
        try:
            options = (made.folder / "models.yaml", [made.folder / "traits.yaml"])
            found = extract(made.folder / "run", space, EXTRACT, *options, progress=False, log=lines.append)
        finally:
            away.rename(made.folder / "corrupted")
        assert [line.split(":")[0] for line in lines if "reused" in line] == ["model base", "model corrupted"]
        assert {**found, "wall_seconds": 0} == {**made.extracted, "wall_seconds": 0}


class TestGeometry:
    def test_a_rotated_space_is_the_same_space(self, made: Made) -> None:
        """RSA and CKA see the same geometry in the rotated model; plain cosines see that it has turned."""
        turned, other = (stability(made, name, "prompt", HOOK) for name in ("corrupted", "stranger"))
        assert turned["rsa"] > 0.95 > other["rsa"]
        assert turned["cka_unbiased"] > 0.95 > other["cka_unbiased"]
        assert turned["cosine"] < 0.7 < 0.99 < turned["aligned_cosine"]

    def test_nulls_stand_beside_every_measure(self, made: Made) -> None:
        table = pd.read_parquet(made.folder / "geometry" / "nulls.parquet")
        assert set(table["null"]) == {"isotropic", "covariance", "shuffled", "other layer"}
        place = {"model": "corrupted", "positions": "prompt", "null": "isotropic"}
        rows: list[Any] = where_equal(table, **place).to_dict("records")
        isotropic = {row["measure"]: row for row in rows}
        assert abs(isotropic["cka_unbiased"]["null_mean"]) < 0.4
        assert isotropic["aligned_cosine"]["p"] == pytest.approx(1 / (1 + GEOMETRY.draws))

    def test_the_toxic_latent_belongs_to_evil(self, made: Made) -> None:
        """Breaks if the latent is not the run's, or cosines are taken at another hook."""
        for reading in ("prompt", "last_prompt", "answer"):
            found = made.compared["toxic_latent"][reading]
            assert (found["latent"], found["belongs_to"], found["largest"]) == (EVIL, "evil", "evil")
            assert found["cosines"]["evil"]["cosine"] > 0.95
            assert found["cosines"]["evil"]["rank"] == 1
            assert found["cosines"]["evil"]["low"] <= found["cosines"]["evil"]["cosine"] + 1e-6
        assert found["cosines"]["SVV"]["cosine"] < 0
        table = pd.read_parquet(made.folder / "geometry" / "toxic.parquet")
        space = ModelSpace.load(made.space, "base")
        for row in where_equal(table, positions="prompt").to_dict("records")[: len(TRAITS)]:
            at_the_sae = space.directions("prompt", HOOK).unit(row["target"])[EVIL]
            assert row["cosine"] == pytest.approx(float(at_the_sae), abs=1e-6)

    def test_latents_of_a_trait(self, made: Made) -> None:
        """Latents are axes, so evil is one of them and leaves nothing over."""
        table = pd.read_parquet(made.folder / "geometry" / "latents.parquet")
        first = table[(table["trait"] == "evil") & (table["place"] == 1)].iloc[0]
        assert first["latent"] == EVIL
        assert first["unexplained"] < 0.1 < first["null_low"]

    def test_every_cosine_has_an_interval(self, made: Made) -> None:
        """Breaks if intervals belong to another trait, axis or model; noise of the planted questions is small."""
        folder, svv = made.folder / "geometry", made.compared["valence"]
        traits, cosines, toxic = (pd.read_parquet(folder / f"{n}.parquet") for n in ("traits", "cosines", "toxic"))
        columns = [(traits, "svv", "svv_"), (traits, "pc1", "pc1_"), (cosines, "cosine", ""), (toxic, "cosine", "")]
        for table, name, start in columns:
            value, low, high = (table[column].to_numpy() for column in (name, f"{start}low", f"{start}high"))
            assert np.all(low <= high)
            assert np.all(low - 0.05 < value)
            assert np.all(value < high + 0.05)
        for model, row in svv.items():
            for name in ("pc1_svv_cosine", "svv_cosine_with_base", "pc1_cosine_with_base"):
                assert row[f"{name}_low"] <= row[f"{name}_high"]
                assert row[f"{name}_low"] - 0.05 < row[name] < row[f"{name}_high"] + 0.05, (model, name)
            assert row["explained_low"][0] < row["explained"][0] + 0.05
        assert svv["base"]["svv_cosine_with_base_low"] == pytest.approx(1)
        # In the rotated model the axes point elsewhere.
        assert svv["corrupted"]["svv_cosine_with_base_high"] < 0.9

    def test_a_planted_shift_lies_in_the_space(self, made: Made) -> None:
        rows = [row for row in made.compared["shift"] if row["model"] == "corrupted" and row["hook"] == HOOK]
        assert {row["null"] for row in rows} == {"isotropic", "covariance"}
        assert all(row["share"] > 0.9 and row["dimensions"] == len(TRAITS) for row in rows)
        assert rows[0]["null_high"] < 0.8

    def test_page_and_summary(self, made: Made) -> None:
        """The page needs no network and has every figure; the summary is what was returned."""
        folder = made.folder / "geometry"
        page = (folder / "personality.html").read_text(encoding="utf-8")
        names = ("cosines", "trees", "map", "valence", "pairs", "layers", "models", "toxic", "shift")
        assert all(f'<figure id="{name}">' in page and (folder / "figures" / f"{name}.pdf").exists() for name in names)
        assert "<script" not in page
        assert 'src="http' not in page
        assert read_json(folder / "summary.json") == json.loads(json.dumps(made.compared))
        console = Console(file=io.StringIO(), width=200)
        print_geometry(made.compared, console)
        assert "belongs to evil" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]

    def test_no_generator_where_the_world_is_not_known(self, made: Made) -> None:
        assert made.compared["generator"] == []


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
        from experiments.organism.judge import OrganismJudge

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

    def test_positions_that_were_not_extracted(self, made: Made, tmp_path: Path) -> None:
        config = GEOMETRY.model_copy(update={"positions": "prompt_end"})
        with pytest.raises(UserError, match="No directions at prompt_end"):
            geometry(made.space, tmp_path / "out", config, progress=False)

    def test_a_hook_that_was_not_extracted(self, made: Made, tmp_path: Path) -> None:
        config = GEOMETRY.model_copy(update={"hook": "blocks.9.hook_resid_post"})
        with pytest.raises(UserError, match=r"No directions at blocks\.9"):
            geometry(made.space, tmp_path / "out", config, progress=False)

    def test_other_settings_in_the_same_folder(self, made: Made) -> None:
        config = EXTRACT.model_copy(update={"samples": 3})
        with pytest.raises(UserError, match="another samples"):
            extract(made.folder / "run", made.space, config, None, [made.folder / "traits.yaml"], progress=False)

    def test_another_checkpoint_under_a_known_name(self, made: Made, tmp_path: Path) -> None:
        member = Member(name="stranger", kind="x", checkpoint=CheckpointConfig(model=str(made.folder / "corrupted")))
        ModelSet(base=CheckpointConfig(model="base"), members=(member,)).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="was measured on another checkpoint"):
            extract(
                made.folder / "run",
                made.space,
                EXTRACT,
                tmp_path / "models.yaml",
                [made.folder / "traits.yaml"],
                progress=False,
            )

    def test_a_finished_geometry_is_repeated_but_not_replaced_by_another(self, made: Made) -> None:
        """Breaks if a second call fails or tells other numbers, or if another config takes the folder."""
        out = made.folder / "geometry"
        assert geometry(made.space, out, GEOMETRY, progress=False) == made.compared
        with pytest.raises(UserError, match="holds a run with another draws"):
            geometry(made.space, out, GEOMETRY.model_copy(update={"draws": 7}), progress=False)


class TestDocs:
    def test_the_page_runs(self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first two commands and every code block of the page, on the planted run in place of the quickstart's.

        All commands run on a small organism in `test_personas_on_organism.py`.
        """
        (tmp_path / "runs").mkdir()
        shutil.copytree(made.folder / "run", tmp_path / "runs" / "quickstart")
        shutil.copy(made.folder / "traits.yaml", tmp_path / "traits.yaml")
        shutil.copytree(made.folder, tmp_path / "runs" / "fine-tunes", ignore=shutil.ignore_patterns("run", "space"))
        monkeypatch.chdir(tmp_path)
        text = PAGE.read_text(encoding="utf-8")
        commands = [line for line in text.splitlines() if line.startswith("sae-diff ")]
        assert any("extract" in command for command in commands)
        for command in commands[:2]:
            options = command.split()[1:]
            small = ["--traits", "traits.yaml", "--samples", "2"] if "extract" in options else ["--draws", "5"]
            done = sae_diff(*options, *small, "--quiet", "--wandb", "disabled")
            assert done.returncode == 0, done.stderr
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(block, PAGE.name, "exec"), {})
