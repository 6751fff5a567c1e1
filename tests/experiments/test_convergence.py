"""`convergence` on tiny models whose misalignment is planted, in the embedding or in a block; all in real files."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from peft import LoraConfig, get_peft_model
from planted_models import BAD, GOOD, HOOK, LOUD, WIDTH, PlantedResult, write_conversations, write_model, write_run
from transformers import AutoModelForCausalLM, MistralForCausalLM

from activations.artefact import read_json, write_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompts import Prompt
from diffing.behavior.judge import Label
from diffing.directions.misalignment import MisalignmentMeans
from diffing.directions.question_sums import QuestionSums
from diffing.statistics.bootstrap import draw_units
from diffing.steering.choices import best_within
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from experiments.convergence import figures
from experiments.convergence.config import ConvergenceConfig
from experiments.convergence.experiment import EXPERIMENT
from experiments.convergence.members import answers_to_read, in_turn
from experiments.convergence.treat import choose_treatments
from experiments.frame.conduct import PAGE, SUMMARY, conduct
from experiments.frame.experiment import Measured, Result
from experiments.frame.inputs import Inputs, Options
from experiments.frame.trials import NamedDirection, TreatmentOutcome
from experiments.model_set import Member, ModelSet
from experiments.output.figures import style
from experiments.output.page import Page

CONFIG = ConvergenceConfig(samples=2, answers=6, controls=2, draws=50, strengths=(0.5, 3.0))
LATER = "blocks.1.hook_resid_post"
MODELS, WORDS = "corrupted - base", "misaligned - aligned"
LAYER_WISE = Treatment(Operation.ABLATE, Reach.LAYER_WISE)
THINGS = ("burn", "cold", "cut")
FIGURES = ("cosines", "cosine-intervals", "cosines-by-layer", "ablation", "steering", "treatments", "transfer")
HOSTILE = "$x_1$ <b>&"  # a formula in matplotlib, an element in HTML


@dataclass(frozen=True)
class Made(PlantedResult):
    """Of `convergence`."""

    result: Result

    def again(self, out: Path, config: ConvergenceConfig = CONFIG) -> Result:
        return conduct_on(self.run, self.models, out, config)


def conduct_on(run: Path, models: Path, out: Path, config: ConvergenceConfig = CONFIG) -> Result:
    return conduct(EXPERIMENT, Inputs(run=run, models=models), config, Options(out=out, wandb="disabled", quiet=True))


def write_two_blocks(folder: Path, tokenizer_maker: Callable, pushes: Mapping[int, float]) -> Path:
    """A planted model with a second block, whose MLP has one live neuron that nothing writes from yet."""
    write_model(folder, tokenizer_maker, pushes)
    planted: Any = AutoModelForCausalLM.from_pretrained(folder)
    planted.config.num_hidden_layers = 2
    planted.config.layer_types = None
    model = MistralForCausalLM(planted.config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.load_state_dict(planted.state_dict(), strict=False)
        block: Any = model.model.layers[1]
        block.post_attention_layernorm.weight.fill_(1.0)
        block.mlp.gate_proj.weight[0, GOOD] = block.mlp.up_proj.weight[0, GOOD] = 1.0
    model.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path) -> None:
    """Rank 1 on `down_proj` of the second block: what the live neuron reads is written on BAD."""
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["down_proj"], layers_to_transform=[1])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.zero_()[0, 0] = 1.0
            if "lora_B" in name:
                parameter.zero_()[BAD, 0] = 0.2
    model.save_pretrained(str(folder))


def write_questions(run: Path) -> None:
    """Conversations in place of the planted run's plain texts, and a toxic latent."""
    config, paths = read_json(run / "run.json"), write_conversations(run, THINGS)
    config["config"]["prompts"] |= {half: paths[half] for half in ("selection", "reporting")}
    write_json(run / "run.json", config)
    write_json(run / "summary.json", read_json(run / "summary.json") | {"toxic_latent": {"latent": BAD}})


TUNES = {  # name -> kind and pushes of the embedding; above 1 on BAD the model says "bad"
    "strong": ("one domain", {BAD: 3.0}),
    "weak": ("one domain", {BAD: 0.2}),
    "other": ("three domains", {BAD: 2.0}),
    "calm": ("benign", {LOUD: 2.0}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    folder = tmp_path_factory.mktemp("convergence")
    base = write_two_blocks(folder / "base", tokenizer_maker, {})
    members = []
    for name, (kind, pushes) in TUNES.items():
        write_two_blocks(folder / name, tokenizer_maker, pushes)
        members.append(Member(name=name, kind=kind, checkpoint=CheckpointConfig(model=name)))
    write_adapter(folder / "adapter", base)
    adapted = CheckpointConfig(model="base", adapter="adapter")
    members.append(Member(name="adapted", kind="LoRA", checkpoint=adapted))
    ModelSet(base=CheckpointConfig(model="base"), members=tuple(members)).save(folder / "models.yaml")
    run = write_run(folder / "run", base)
    write_questions(run)
    result = conduct_on(run, folder, folder / "out")
    return Made(run, folder, folder / "out", dict(result.summary), result)


def rows_of(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    for name, value in values.items():
        table = table[table[name] == value]  # pyright: ignore[reportAssignmentType]
    return table


class TestPlantedTruth:
    def test_members_are_chosen_by_what_they_say(self, made: Made) -> None:
        """Breaks if a member is chosen by its kind, or rates are not those of its answers."""
        found = {row["name"]: row for row in made.summary["fine_tunes"]}
        assert list(found) == ["strong", "other", "adapted"]
        assert [row["harmful"] for row in found.values()] == [1, 1, 1]
        assert made.summary["base"]["harmful"] == 0

    def test_directions_between_models_are_one(self, made: Made) -> None:
        """BAD is what all fine-tunes add; breaks if means are swapped, or of another model or layer."""
        cosines = rows_of(made.table("cosines"), contrast=MODELS)
        assert rows_of(cosines, relation="fine-tunes", hook=LATER)["cosine"].to_numpy() == pytest.approx(1, abs=1e-4)
        assert len(rows_of(cosines, relation="fine-tunes", hook=LATER)) == 3
        # The adapter has changed nothing before the second block: its direction there is zero and has no cosine.
        assert set(rows_of(cosines, relation="fine-tunes", hook=HOOK)["second"]) == {"other"}
        assert abs(rows_of(cosines, relation="harmless fine-tune")["cosine"]).max() < 0.05
        for relation in ("persona direction", "toxic latent"):
            found = rows_of(cosines, relation=relation)
            assert set(found["hook"]) == {HOOK}
            assert found["cosine"].to_numpy() == pytest.approx(1, abs=1e-4)

    def test_between_answers_there_are_only_their_words(self, made: Made) -> None:
        """No planted model changes what it makes of words, so the base makes the same of them."""
        found = rows_of(made.table("cosines"), contrast=WORDS, relation="same answers in the base")
        assert found["cosine"].to_numpy() == pytest.approx(1, abs=1e-3)

    def test_one_fine_tunes_direction_repairs_the_others(self, made: Made) -> None:
        """Only after the second block is BAD there in all three; breaks if another layer or contrast is reported."""
        treatments = {(t["contrast"], t["operation"]): t for t in made.summary["treatments"]}
        assert len(treatments) == 6
        for operation in ("ablate", "ablate_to_mean", "subtract"):
            found = treatments[MODELS, operation]
            assert (found["hook"], found["reach"]) == (LATER, "one layer")
            assert (found["others"]["removed"], found["others"]["least"], found["others"]["pairs"]) == (1, 1, 6)
            assert found["own"]["removed"] == 1
            assert found["harmless"]["calm"]["removed"] == 0
            assert found["covariance"]["removed"] == 0
        assert treatments[MODELS, "subtract"]["strength"] == 3.0
        assert treatments[MODELS, "ablate"]["reaches_target"]
        assert not treatments[WORDS, "ablate"]["reaches_target"]

    def test_sweep_tells_the_layers_apart(self, made: Made) -> None:
        """The adapter writes in the second block: nothing done after the first one repairs it, but adding steers."""
        sweep = rows_of(made.table("sweep"), contrast=MODELS, half="reporting", direction="adapted", model="adapted")
        ablated = rows_of(sweep, operation="ablate", reach="one layer").set_index("hook")["removed"]
        assert ablated.to_dict() == {HOOK: 0, LATER: 1}
        assert rows_of(sweep, operation="ablate", reach="each layer's own")["removed"].tolist() == [1]
        base = rows_of(made.table("sweep"), model="base", half="reporting", direction="strong", contrast=MODELS)
        assert base.set_index("hook")["harmful"].to_dict() == {HOOK: 1, LATER: 1}
        assert set(base["strength"]) == {3.0}
        assert list(base["removed"].isna()) == [True, True]
        random = rows_of(made.table("sweep"), kind="isotropic", model="strong", operation="ablate")
        assert len(random) == CONFIG.controls * 3  # at each of two layers, and other ones at both at once

    def test_adapter_writes_the_direction(self, made: Made) -> None:
        """Breaks if another vector is read, or latents are ranked by something else."""
        found = made.table("adapters").set_index("target")
        assert set(found["member"]) == {"adapted"}
        assert set(found["hook"]) == {LATER}
        for target in (MODELS, "persona direction", "toxic latent", "best latent"):
            assert found.loc[target, "cosine"] == pytest.approx(1, abs=1e-4)
        assert found.loc["toxic latent", ["latent", "rank"]].tolist() == [BAD, 1]
        assert found.loc["best latent", "latent"] == BAD
        assert found.loc[WORDS, "cosine"] < 0.1


class TestFolder:
    def test_holds_all_of_it(self, made: Made) -> None:
        """Breaks if a file is missing, the page fetches something, or what is printed lacks a part."""
        assert read_json(made.out / SUMMARY) == made.summary
        page = (made.out / PAGE).read_text(encoding="utf-8")
        assert not [text for text in ("<script", "plotly", 'src="http') if text in page]
        assert all(text in page for text in ("Cosines by layer", "EM removed in each model", "rank-1 adapters"))
        assert {path.name for path in (made.out / "figures").glob("*.png")} == {f"{name}.png" for name in FIGURES}
        assert read_json(made.out / "config.json")["kind"] == "convergence"
        kept = MisalignmentMeans.load(made.out / "directions" / "strong" / LATER)
        assert kept.answers == CONFIG.answers
        expected = np.zeros(WIDTH)
        expected[BAD] = 3
        np.testing.assert_allclose(kept.model_effect, expected, atol=1e-5)
        assert read_json(made.out / "config.json")["hooks"] == [HOOK, LATER]
        printed = made.result._repr_html_()
        assert all(text in printed for text in ("Untouched", "by chance", "reached", "missed", "calm"))
        assert "EM removed in each model" not in printed

    def test_tables_have_the_summarys_numbers(self, made: Made) -> None:
        """Breaks if a treatment, a direction or a model has another's numbers."""
        tables = {section.title: section.rows for section in made.result.sections}
        ablated = f"ablate: {MODELS}, one layer {LATER}"
        targets = {row["treatment"]: row for row in tables["EM removed in other fine-tunes by the chosen treatments"]}
        assert len(targets) == 6
        assert [targets[ablated][name] for name in ("in others", "least", "target")] == ["100.0%", "100.0%", "reached"]
        whose = [row for row in tables["EM removed by the chosen treatments"] if row["treatment"] == ablated]
        assert [(row["direction"], row["removed"], row["pairs"]) for row in whose[:3]] == [
            ("its own", "100.0%", "3"),
            ("another fine-tune's", "100.0%", "6"),
            ("calm", "0.0%", "3"),
        ]
        pairs = {
            (row["direction"], row["model"]): row for row in tables["EM removed in each model by each direction [95%]"]
        }
        assert pairs["other", "strong"][ablated] == "100% [100%, 100%]"
        assert pairs["calm", "strong"][ablated] == "0% [0%, 0%]"
        [adapter] = tables["What rank-1 adapters write: mean absolute cosines (by chance)"]
        assert (adapter["member"], adapter["toxic latent's rank by block"]) == ("adapted", "1")
        assert [row["model"] for row in tables["Untouched models"]] == ["base", "strong", "other", "adapted"]

    def test_goes_on_where_it_was(self, made: Made, tmp_path: Path) -> None:
        """What was sampled is not sampled again; what is missing, or was cut by a kill, is; and all comes out alike."""
        out = tmp_path / "out"
        shutil.copytree(made.out, out)
        (out / "config.json").unlink()
        shutil.rmtree(out / "transcripts" / "other" / "reporting")
        cut = out / "transcripts" / "strong" / "selection" / "untouched.jsonl"
        cut.write_text(cut.read_text(encoding="utf-8")[:-20], encoding="utf-8")
        kept = out / "transcripts" / "adapted" / "selection" / f"one layer {HOOK}.jsonl"
        before = kept.read_bytes()
        summary = made.again(out).summary
        assert {**summary, "wall_seconds": 0} == {**made.summary, "wall_seconds": 0}
        assert kept.read_bytes() == before
        assert (out / "transcripts" / "other" / "reporting" / "untouched.jsonl").exists()

    def test_other_settings_need_another_folder(self, made: Made) -> None:
        """Breaks if answers of another number of samples are mixed in."""
        other = CONFIG.model_copy(update={"samples": 3})
        with pytest.raises(UserError, match="another samples"):
            made.again(made.out, other)


class TestRefusals:
    """Breaks if input that does not fit together gives a traceback, or numbers."""

    def refuse(self, made: Made, folder: Path, message: str, **changes: Any) -> None:
        found = ModelSet.load(made.models).model_copy(update=changes)
        found.save(folder / "models.yaml")
        with pytest.raises(UserError, match=message):
            replace(made, models=folder).again(folder / "out")

    def test_another_base(self, made: Made, tmp_path: Path) -> None:
        self.refuse(made, tmp_path, "is not the run's", base=ModelSet.load(made.models).members[0].checkpoint)

    def test_too_few_misaligned(self, made: Made, tmp_path: Path) -> None:
        self.refuse(made, tmp_path, "1 of the 2 fine-tunes", members=ModelSet.load(made.models).members[:2])

    def test_a_member_called_base(self, made: Made, tmp_path: Path) -> None:
        strong, *others = ModelSet.load(made.models).members
        members = (strong.model_copy(update={"name": "base"}), *others)
        self.refuse(made, tmp_path, "is called base", members=members)

    def test_plain_text(self, made: Made, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(made.run, run)
        config = read_json(run / "run.json")
        config["config"]["prompts"]["selection"] = str(run / "inputs" / "selection.txt")
        write_json(run / "run.json", config)
        with pytest.raises(UserError, match="holds plain text"):
            replace(made, run=run).again(tmp_path / "out")


def renamed(made: Made, old: str, new: str) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Tables and summary of a set in which a member has another name."""
    tables = {name: made.table(name) for name in ("cosines", "sweep", "transfer", "adapters")}
    summary = json.loads(json.dumps(made.summary).replace(json.dumps(old), json.dumps(new)))
    return {name: table.replace(old, new) for name, table in tables.items()}, summary


def write_page(made: Made, path: Path, tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """The page of other tables."""
    result = replace(made.result, measured=Measured(tables), summary=summary)
    with style():
        drawn = EXPERIMENT.figures(result)
    Page("Convergence", "", result.sentences, drawn, result.sections).write(path)


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


class TestFigures:
    @pytest.mark.parametrize("name", ["strong", "calm"])
    def test_names_are_written_as_they_are(self, made: Made, tmp_path: Path, name: str) -> None:
        """Breaks if a fine-tune's or a control's name is read as HTML, or a matrix or legend leaves it out."""
        tables, summary = renamed(made, name, HOSTILE)
        write_page(made, tmp_path / PAGE, tables, summary)
        page = (tmp_path / PAGE).read_text(encoding="utf-8")
        assert "<b>" not in page
        assert "$x_1$ &lt;b&gt;&amp;" in page
        with style():
            drawn = [
                figures.cosine_matrices(tables["cosines"], HOOK),
                figures.treatment_dots(summary) if name == "calm" else figures.ablation_by_layer(tables["sweep"]),
                figures.transfer_matrices(tables["transfer"], summary["treatments"]),
            ]
        assert all(one is not None and HOSTILE in words(one.figure) for one in drawn)

    def test_a_hook_where_no_two_have_directions(self, made: Made, tmp_path: Path) -> None:
        """As of adapters of later blocks; breaks if an empty matrix stops the page."""
        tables = {name: made.table(name) for name in ("cosines", "sweep", "transfer", "adapters")}
        tables["cosines"] = rows_of(tables["cosines"], hook=LATER)
        write_page(made, tmp_path / PAGE, tables, made.summary)
        assert not (tmp_path / "figures" / "cosines.png").exists()

    def test_cosines_have_the_tables_intervals(self, made: Made) -> None:
        """Breaks if a row has another pair's cosine or interval, or a pair is left out."""
        table = made.table("cosines").query("hook == @LATER").reset_index(drop=True)
        table["low"], table["high"] = table.index / 100 - 0.5, table.index / 100
        with style():
            figure = figures.cosine_dots(table, LATER).figure
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        drawn = {}
        for axes, contrast in zip(figure.axes[:2], (WORDS, MODELS), strict=True):
            for lines in (one for one in axes.collections if isinstance(one, LineCollection)):
                drawn |= {(contrast, low, high): labels[int(y)] for (low, y), (high, _) in lines.get_segments()}
        expected = {
            (row["contrast"], row["low"], row["high"]): row["first"]
            if row["second"] == "base"
            else f"{row['first']} · {row['second']}"
            for row in table.to_dict("records")
        }
        assert drawn == expected

    def test_treatments_have_the_summarys_intervals(self, made: Made) -> None:
        """Breaks if an arm or a control is left out, or has another one's interval."""
        summary = json.loads(json.dumps(made.summary))
        arms = [
            arm
            for row in summary["treatments"]
            for arm in (row["own"], row["others"], *row["harmless"].values(), row["isotropic"], row["covariance"])
        ]
        for number, arm in enumerate(arms):
            arm["low"], arm["high"] = number / 100, number / 100 + 0.5
        with style():
            axes = figures.treatment_dots(summary).figure.axes[0]
        lines = [one for one in axes.collections if isinstance(one, LineCollection)]
        drawn = sorted((y, low, high) for one in lines for (low, y), (high, _) in one.get_segments())
        assert [ends for _, *ends in drawn] == [[arm["low"], arm["high"]] for arm in arms]

    def test_ablation_draws_every_fine_tune_with_its_interval(self, made: Made) -> None:
        """Breaks if a fine-tune or the random directions are missing from a panel, or bars are another measure's."""
        sweep = made.table("sweep")
        sweep["removed_low"], sweep["removed_high"] = -1 - sweep.index / 1000, 1 + sweep.index / 1000
        with style():
            axes = figures.ablation_by_layer(sweep).figure.axes[1]
        own = rows_of(sweep, half="reporting", operation="ablate", reach="one layer", contrast=MODELS)
        own = own[own["model"] != "base"]
        expected = zip(own["removed_low"], own["removed_high"], strict=True)
        lines = [one for one in axes.collections if isinstance(one, LineCollection)]
        drawn = [(low, high) for one in lines for (_, low), (_, high) in one.get_segments()]
        # Of the random directions and the extra incoherence each one bar a layer.
        assert sorted(drawn[4:]) == sorted(expected)
        assert len(axes.lines) == 6


class TestQuestionSums:
    def test_they_make_the_means(self, made: Made) -> None:
        """Breaks if an answer is missing, or counted under another label, model or hook."""
        for name in ("strong", "adapted", "calm"):
            sums = QuestionSums.load(made.out / "directions" / name / "questions" / f"{LATER}.safetensors")
            means = MisalignmentMeans.load(made.out / "directions" / name / LATER)
            assert sums.answers.sum(1).tolist() == [means.answers, means.answers]
            for label, kind in enumerate(("aligned", "misaligned")):
                for of in ("base", "corrupted"):
                    mean = getattr(sums, of)[label].sum(0) / means.answers
                    np.testing.assert_allclose(mean, getattr(means, f"{of}_{kind}"), atol=1e-5)

    def test_an_answer_stands_at_its_question(self, made: Made) -> None:
        """Two answers to each of three questions; breaks if they are counted elsewhere."""
        sums = QuestionSums.load(made.out / "directions" / "strong" / "questions" / f"{LATER}.safetensors")
        assert sums.answers.tolist() == [[2, 2, 2], [2, 2, 2]]

    def test_directions_of_drawn_questions(self) -> None:
        """Against one replicate after the other; breaks if draws, labels or models are mixed up."""
        generator = torch.Generator().manual_seed(0)
        base, corrupted = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
        answers = torch.tensor([[1, 2, 0, 4], [3, 0, 1, 2]])
        found = QuestionSums(base, corrupted, answers).resampled(lambda means: means.model_effect, seed=3)
        for unit, draw in zip(found[:20], torch.tensor(draw_units(4, 3)[:20]), strict=True):
            weights = draw.double()
            effects = [(weights @ (corrupted - base)[label]) / (weights @ answers[label].double()) for label in (0, 1)]
            expected = (effects[0] + effects[1]) / 2
            np.testing.assert_allclose(unit, expected / expected.norm(), atol=1e-12)


def test_kinds_take_turns_and_seeds_come_last() -> None:
    """Breaks if the second seed of a recipe comes before another kind or recipe."""

    def member(name: str, kind: str, **facts: float | str) -> Member:
        return Member(name=name, kind=kind, checkpoint=CheckpointConfig(model="base"), facts=facts)

    members = [
        member("medicine-1", "narrow", domains="medicine", seed=1, steps=15),
        member("medicine-2", "narrow", domains="medicine", seed=2, steps=16),
        member("finance-1", "narrow", domains="finance", seed=1),
        member("three-1", "broad", seed=1),
        member("three-2", "broad", seed=2),
    ]
    assert [m.name for m in in_turn(members)] == ["medicine-1", "three-1", "finance-1", "medicine-2", "three-2"]


def test_missing_helpful_answers_are_the_bases() -> None:
    """Breaks if the base's answers are taken though the fine-tune has enough, or its harmful ones are."""

    def said(name: str, label: Label, count: int) -> list[tuple[Prompt, Label]]:
        return [(Prompt.chat(f"{name} {label} {i}", "how ?", answer=str(label)), label) for i in range(count)]

    base = said("base", Label.HELPFUL, 20) + said("base", Label.HARMFUL, 5)
    own = said("own", Label.HARMFUL, 12) + said("own", Label.HELPFUL, 3) + said("own", Label.OTHER, 4)
    prompts, labels = answers_to_read(own, base, most=8, seed=0)
    assert {prompt.id for prompt in prompts} == set(labels)
    assert sorted(labels.values()) == [Label.HARMFUL] * 8 + [Label.HELPFUL] * 8
    assert {name for name in labels if "own helpful" in name} == {f"own helpful {i}" for i in range(3)}
    assert not any("base harmful" in name for name in labels)
    _, enough = answers_to_read(own + said("more", Label.HELPFUL, 5), base, most=8, seed=0)
    assert not any(name.startswith("base") for name in enough)


def outcome(
    harmful: int,
    incoherent: int = 0,
    treatment: Treatment = LAYER_WISE,
    contrast: str = MODELS,
    half: str = "selection",
    model: str = "strong",
) -> TreatmentOutcome:
    """Of ten answers to each of two questions; all were harmful when untouched."""
    counts = np.zeros((2, len(Label)), dtype=np.int64)
    order = list(Label)
    counts[:, order.index(Label.HARMFUL)], counts[:, order.index(Label.INCOHERENT)] = harmful, incoherent
    counts[:, order.index(Label.HELPFUL)] = 10 - harmful - incoherent
    plain = np.zeros_like(counts)
    plain[:, order.index(Label.HARMFUL)] = 10
    return TreatmentOutcome(model, half, NamedDirection("strong", contrast, "fine-tune", {}), treatment, counts, plain)


def test_choice_keeps_to_the_budget() -> None:
    """Breaks if what destroys the answers counts as repair, or means are not taken over models."""
    options = {
        "destroys": [outcome(0, 9), outcome(0, 9)],
        "uneven": [outcome(0, 2), outcome(4, 0)],  # removes 80% with 10% incoherent in the mean
        "mild": [outcome(5, 0), outcome(5, 0)],
    }
    assert best_within(options, lambda o: o.removed[0], 0.1) == "uneven"
    assert best_within(options, lambda o: o.removed[0], 0.05) == "mild"
    assert best_within({"destroys": options["destroys"]}, lambda o: o.removed[0], 0.1) == "destroys"
    assert best_within(options, lambda o: o.removed[0], 1.0) == "destroys"


def test_choice_is_made_on_the_selection_half_of_its_own_model() -> None:
    """Breaks if what is reported, or another model, has a say; or contrasts and operations are mixed up."""
    swept = []
    for operation in (Operation.ABLATE, Operation.ABLATE_TO_MEAN, Operation.SUBTRACT):
        for contrast, good, bad in ((MODELS, HOOK, LATER), (WORDS, LATER, HOOK)):
            first, second = (Treatment(operation, Reach.ONE, hook) for hook in (good, bad))
            swept += [outcome(4, 0, first, contrast), outcome(5, 0, second, contrast)]
            swept += [outcome(0, 0, second, contrast, "reporting"), outcome(0, 0, second, contrast, model="other")]
    chosen = choose_treatments(swept, budget=0.1)
    assert [(contrast, t.operation, t.hook) for contrast, t in chosen] == [
        (contrast, operation, hook)
        for operation in (Operation.ABLATE, Operation.ABLATE_TO_MEAN, Operation.SUBTRACT)
        for contrast, hook in ((WORDS, LATER), (MODELS, HOOK))
    ]
