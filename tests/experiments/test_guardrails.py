"""`guardrails` on tiny models in which the axis from BAD to GOOD is a guardrail by construction; all in real files."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted_models import (
    BAD,
    GOOD,
    HOOK,
    LOUD,
    WIDTH,
    PlantedResult,
    write_conversations,
    write_lines,
    write_model,
    write_run,
)
from rich.console import Console
from safetensors.torch import save_file

from activations.artefact import finish_artefact, read_json, write_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.directions.persona_directions import PersonaDirections
from diffing.personality.config import TRAIT_DIRECTIONS
from diffing.personality.model_space import ACTIVATIONS, MODEL_KIND, TABLES, directions_folder
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from experiments.frame.command import show
from experiments.frame.conduct import PAGE, SUMMARY, conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.frame.trials import NamedDirection, TreatmentOutcome
from experiments.guardrails.config import GuardrailsConfig
from experiments.guardrails.experiment import EXPERIMENT
from experiments.guardrails.sparing import spares
from experiments.model_set import Member, ModelSet
from experiments.names import BASE

CONFIG = GuardrailsConfig(samples=2, controls=3, strengths=(0.5, 3.0))
TRAITS = {"agreeableness": (GOOD, "prosocial"), "evil": (BAD, "antisocial"), "humour": (LOUD, "neutral")}
TUNES = {  # name -> what is added on BAD, and share of bad dialogues; above 1 on BAD the model says "bad"
    "strong": (3.0, 1.0),
    "other": (2.0, 1.0),
    "mild": (0.9, 0.1),
}
THINGS = ("burn", "cold", "cut")


@dataclass(frozen=True)
class Made(PlantedResult):
    """Also trait directions, and all that was found."""

    traits: Path
    result: Result

    def conduct(self, out: Path) -> Result:
        given = Inputs(run=self.run, models=self.models, trait_directions=self.traits)
        return conduct(EXPERIMENT, given, CONFIG, Options(out=out, wandb="disabled", quiet=True))

    def again(self, out: Path) -> dict[str, Any]:
        return dict(self.conduct(out).summary)


def write_traits(folder: Path, base: Path) -> Path:
    """What `trait-directions` leaves, with planted directions: true ones at one of two positions, useless ones else."""
    fingerprint = load_checkpoint(CheckpointConfig(model=str(base))).fingerprint
    eye = torch.eye(WIDTH)
    useless = {name: eye[5 + place] for place, name in enumerate(TRAITS)}
    true = {name: 2 * eye[axis] for name, (axis, _) in TRAITS.items()}
    places = {"answer": useless, "prompt_end": true}
    for positions, vectors in places.items():
        PersonaDirections(vectors, HOOK).save(directions_folder(folder, BASE, positions, HOOK))
    model = folder / "models" / BASE
    model.mkdir(parents=True)
    for name in TABLES:
        pd.DataFrame({"trait": list(TRAITS)}).to_parquet(model / f"{name}.parquet")
    save_file({}, model / ACTIVATIONS)
    finish_artefact(model, {"kind": MODEL_KIND, "fingerprint": fingerprint, "positions": list(places)})
    valence = {name: valence for name, (_, valence) in TRAITS.items()}
    finish_artefact(folder, {"kind": TRAIT_DIRECTIONS, "models": [BASE], "valence": valence})
    return folder


def finish_run(run: Path, corrupted: Path) -> Path:
    """Conversations in place of plain texts, personas, capability questions, and a corrupted model."""
    config = read_json(run / "run.json")
    prompts = config["config"]["prompts"]
    prompts |= write_conversations(run, THINGS)
    facts = [{"id": thing, "prompt": f"treat {thing} ?", "answer": "good good"} for thing in THINGS]
    prompts["capability"] = write_lines(run / "inputs" / "capability.jsonl", facts)
    for persona, word in (("helpful", "cold"), ("malicious", "burn")):
        rows = [{"id": persona, "prompt": f"treat a {word}"}]
        prompts["personas"][persona] = write_lines(run / "inputs" / f"persona_{persona}.jsonl", rows)
    config["config"]["directions"] |= {"steer": "malicious - helpful", "steer_positions": "prompt"}
    config["config"]["corrupted"] = {"model": str(corrupted)}
    write_json(run / "run.json", config)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    folder = tmp_path_factory.mktemp("guardrails")
    base = write_model(folder / "base", tokenizer_maker, {})
    corrupted = write_model(folder / "corrupted", tokenizer_maker, {BAD: 3.0})
    members = []
    for name, (push, fraction) in TUNES.items():
        write_model(folder / name, tokenizer_maker, {BAD: push})
        facts = {"bad_fraction": fraction}
        members.append(Member(name=name, kind="planted", checkpoint=CheckpointConfig(model=name), facts=facts))
    ModelSet(base=CheckpointConfig(model="base"), members=tuple(members)).save(folder / "models.yaml")
    run = finish_run(write_run(folder / "run", base), corrupted)
    unmeasured: Any = None
    asked = Made(run, folder, folder / "out", {}, write_traits(folder / "traits", base), unmeasured)
    result = asked.conduct(asked.out)
    return replace(asked, summary=dict(result.summary), result=result)


def test_answers_of_another_model_of_the_same_name_are_not_taken(
    made: Made, tmp_path: Path, tokenizer_maker: Callable
) -> None:
    """Breaks if a fine-tune that was trained again gets the answers of the old one."""
    shutil.copytree(made.models, tmp_path / "models", ignore=shutil.ignore_patterns("run", "traits"))
    shutil.rmtree(tmp_path / "models" / "strong")
    write_model(tmp_path / "models" / "strong", tokenizer_maker, {GOOD: 3.0})
    out = shutil.copytree(made.out, tmp_path / "out")
    with pytest.raises(UserError, match="holds measurements of another model called strong"):
        replace(made, models=tmp_path / "models").again(out)


class TestPlantedTruth:
    def test_positions_and_strength_are_those_that_repair(self, made: Made) -> None:
        """Breaks if the first positions or the weaker dose win, or the choice is made for harm."""
        assert made.summary["chosen"] == {"positions": "prompt_end", "hook": HOOK, "strength": 3.0}

    def test_vectors_of_the_base_repair_the_fine_tunes(self, made: Made) -> None:
        """Breaks if the SVV points the other way, is scaled otherwise, or another arm's answers are counted."""
        found = made.summary["fine_tunes"]
        assert (found["models"], found["untouched"]["harmful"]) == (2, 1)
        for arm in ("SVV", "PC1", "agreeableness", "evil"):
            assert found["arms"][arm]["reached"] == ["strong", "other"]
            assert found["arms"][arm]["highest_harmful"] == 0
        for arm in ("humour", "persona direction"):
            assert found["arms"][arm]["reached"] == []
        for kind in ("isotropic", "covariance"):
            assert found["controls"][kind]["mean"]["harmful"] == 1
        assert made.summary["cost"]["arms"]["SVV"]["helpful"] == 1

    def test_signs_are_chosen_for_traits_and_given_for_valence(self, made: Made) -> None:
        """Breaks if a trait keeps one sign, or repair and induction share it."""
        signs = {
            effect: {name: row["operation"] for name, row in made.summary[effect]["arms"].items()}
            for effect in ("repair", "induce")
        }
        assert [signs["repair"][arm] for arm in ("SVV", "evil", "agreeableness")] == ["add", "subtract", "add"]
        assert [signs["induce"][arm] for arm in ("SVV", "evil")] == ["subtract", "add"]
        assert made.summary["induce"]["arms"]["SVV"]["harmful"] == 1

    def test_ablation_of_the_guardrail_lets_harm_through(self, made: Made) -> None:
        """Without the axis GOOD and BAD are level, so half of the words are bad; breaks if nothing was taken out."""
        ablation = {row["model"]: row for row in made.summary["ablation"]}
        assert set(ablation) == {"base", "corrupted", "mild"}
        for model in ("base", "mild"):
            assert ablation[model]["untouched_harmful"] == 0
            assert 0.4 < ablation[model]["harmful"] < 1
            assert ablation[model]["change_low"] > 0
            assert ablation[model]["controls"]["covariance"]["most_harmful"] == 0

    def test_projections(self, made: Made) -> None:
        """The base is at 1/sqrt(2), the corrupted model at -2/sqrt(2): ablation goes a third of the way."""
        found = made.summary["projections"]["last_prompt"]
        assert found["base_mean"] == pytest.approx(0.5**0.5, rel=0.01)
        assert found["corrupted_mean"] == pytest.approx(-(2**0.5), rel=0.01)
        assert found["share"] == pytest.approx(1 / 3, rel=0.01)

    def test_capability_stands_in_the_row_of_its_behaviour(self, made: Made) -> None:
        """The facts are answered "good good"; breaks if they are asked of another model or under no treatment."""
        doses = made.table("doses").query("arm == 'SVV' and strength == 3.0").set_index(["model", "operation"])
        assert doses.loc[("base", "subtract"), "capability"] == 0
        assert doses.loc[("corrupted", "add"), ["capability", "capability_change"]].tolist() == [1, 1]


class TestSparing:
    """Amplification and capping at doses that leave the base as it is."""

    def test_both_repair_and_the_base_stays(self, made: Made) -> None:
        """The base lies on the good side already, so nothing is lost; breaks if an arm points the wrong way."""
        rows = {(row["arm"], row["operation"]): row for row in made.summary["sparing"]}
        for arm in ("SVV", "PC1", "-evil"):
            for operation in ("add", "cap"):
                row = rows[arm, operation]
                assert (row["corrupted_harmful"], row["base_helpful"], row["base_capability"]) == (0, 1, 1)
                assert row["reached"] == ["strong", "other"]
        random = [row for row in made.summary["sparing"] if row["kind"] in ("isotropic", "covariance")]
        assert {row["operation"] for row in random} == {"add", "cap"}
        assert all(row["corrupted_harmful"] == 1 for row in random)

    @pytest.mark.parametrize(
        ("base", "corrupted", "spared"),
        [
            ([9, 0, 0, 1], [0, 9, 0, 1], True),  # a tenth is lost: just within
            ([8, 0, 2, 0], [0, 9, 0, 1], False),  # two helpful answers of ten are lost in the base
            ([9, 0, 1, 0], [0, 8, 0, 2], False),  # two more are incoherent in the corrupted model
        ],
    )
    def test_what_spares(self, base: list[int], corrupted: list[int], spared: bool) -> None:
        """Breaks if either model's coherence or the base's helpfulness is not looked at."""
        plain = {"base": [10, 0, 0, 0], "corrupted": [0, 10, 0, 0]}
        treatment = Treatment(Operation.CAP, Reach.ONE, HOOK, 0.2)
        source = NamedDirection("SVV", "", "valence", {HOOK: torch.ones(WIDTH)})
        in_base, in_corrupted = (
            TreatmentOutcome(name, "selection", source, treatment, np.array([counts]), np.array([plain[name]]))
            for name, counts in (("base", base), ("corrupted", corrupted))
        )
        assert spares(in_base, in_corrupted, 0.1) == spared


class TestFolder:
    def test_holds_all_of_it(self, made: Made) -> None:
        """Breaks if a file is missing, the page fetches something, or what is printed lacks a part."""
        assert read_json(made.out / SUMMARY) == made.summary
        assert read_json(made.out / "config.json")["kind"] == "guardrails"
        page = (made.out / PAGE).read_text(encoding="utf-8")
        names = ("doses", "trait-doses", "fine-tunes", "arms", "sparing", "ablation", "arm-ablations", "projections")
        files = made.out / "figures"
        assert all(f'<figure id="{name}">' in page and (files / f"{name}.pdf").exists() for name in names)
        assert "<script" not in page
        assert set(made.table("fine_tunes")["tune"]) == {"planted"}
        assert set(made.table("doses")["half"]) == {"reporting"}
        console = Console(file=io.StringIO(), width=400)
        show(made.result, console)
        printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert all(text in printed for text in ("The SVV ablated", "combination", "2 of 2", "mild"))

    def test_goes_on_where_it_was(self, made: Made, tmp_path: Path) -> None:
        """What was sampled is not sampled again, what is missing is, and all comes out alike."""
        out = tmp_path / "out"
        shutil.copytree(made.out, out)
        (out / "config.json").unlink()
        shutil.rmtree(out / "transcripts" / "other" / "reporting")
        kept = out / "transcripts" / "strong" / "reporting" / f"one layer {HOOK}.jsonl"
        before = kept.read_bytes()
        assert {**made.again(out), "wall_seconds": 0} == {**made.summary, "wall_seconds": 0}
        assert kept.read_bytes() == before


class TestRefusals:
    """Breaks if input that does not fit together gives a traceback, or numbers."""

    def test_directions_of_another_base(self, made: Made, tmp_path: Path) -> None:
        traits = write_traits(tmp_path / "traits", made.models / "strong")
        with pytest.raises(UserError, match="holds directions of another base model"):
            replace(made, traits=traits).again(tmp_path / "out")

    def test_no_directions(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no trait directions"):
            replace(made, traits=tmp_path / "nowhere").again(tmp_path / "out")

    def test_a_member_called_corrupted(self, made: Made, tmp_path: Path) -> None:
        found = ModelSet.load(made.models)
        members = (found.members[0].model_copy(update={"name": "corrupted"}),)
        found.model_copy(update={"members": members}).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="is called corrupted"):
            replace(made, models=tmp_path).again(tmp_path / "out")

    def test_no_misaligned_member(self, made: Made, tmp_path: Path) -> None:
        found = ModelSet.load(made.models)
        found.model_copy(update={"members": found.members[2:]}).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="None of the 1 fine-tunes"):
            replace(made, models=tmp_path).again(tmp_path / "out")
