"""Prevention on an organism's run: what is trained and measured, what chooses doses, and what a second call reuses."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from safetensors.torch import load_file
from tiny_organism import ORGANISM, write_organism_run

from activations.artefact import read_json, write_json
from activations.errors import UserError
from diffing.tables import where
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.organism.world import World
from experiments.output.figures import FORMATS, style
from experiments.prevent.config import FAMILIES, Method, PreventionConfig
from experiments.prevent.experiment import EXPERIMENT
from experiments.prevent.figures import COLOURS, chosen_doses, loss_and_harm
from experiments.prevent.hooks import similar_latents
from experiments.prevent.outcomes import choose_dose
from experiments.prevent.questions import trained_questions
from experiments.prevent.summary import findings, summarise

CONFIG = PreventionConfig(strengths=(0.1, 50.0), weights=(0.1,), top=3, controls=1, patience=1.5, samples=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_organism_run(tmp_path_factory.mktemp("prevention") / "run")


def prevent(run: Path, out: Path, config: PreventionConfig = CONFIG) -> Result:
    return conduct(EXPERIMENT, Inputs(run=run), config, Options(out=out, wandb="disabled", quiet=True))


@dataclass(frozen=True)
class Prevented:
    run: Path
    out: Path
    result: Result

    @property
    def table(self) -> pd.DataFrame:
        return self.result.tables["prevention"]


@pytest.fixture(scope="module")
def prevented(run: Path) -> Prevented:
    out = run.with_name("prevented")
    return Prevented(run, out, prevent(run, out))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def made_up(prevented: Prevented) -> pd.DataFrame:
    """The table with other numbers, no two alike: all answers of the tiny organism are incoherent."""
    names = ("harmful", "helpful", "capability", "trained_harmful", "prevented", "change", "change_low")
    values = np.random.default_rng(0).uniform(0.1, 0.85, (len(names), len(prevented.table)))
    table = prevented.table.assign(**dict(zip(names, values, strict=True)))
    return table.assign(low=table["harmful"] - 0.05, high=table["harmful"] + 0.1)


class TestPrevention:
    def test_without_prevention_it_is_the_corrupted_model(self, prevented: Prevented):
        """Breaks if other data, steps or settings train than made the run's corrupted model."""
        files = (prevented.out / "models/none/loss", prevented.run / "organism/corrupted")
        one, other = (load_file(folder / "model.safetensors") for folder in files)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_every_method_is_measured_at_both_ends(self, prevented: Prevented):
        """Breaks if an arm, an end or a control is left out, or controls have another dose than was chosen."""
        table = prevented.table
        doses = table[table["chosen"] | table["chosen_in_training"]].groupby("family")["dose"].nunique()
        assert len(table) == 1 + 2 * (1 + 2 + 1 + 1 + doses.sum())
        steps = read_json(prevented.run / "organism/config.json")["finetuning_steps"]
        assert set(table.loc[table["end"] == "steps", "step"]) == {steps}
        controls = table[table["control"].notna()]
        assert all(controls["chosen"] | controls["chosen_in_training"])
        assert set(table.loc[table["chosen"], "family"]) == {"steering", "latents", "toxic latent"}
        assert all(table["harmful"].between(table["low"], table["high"]))

    def test_ends_are_at_equal_loss_or_at_the_last_step(self, prevented: Prevented):
        """Breaks if a fine-tune is saved late, or one that never comes down is said to have reached the loss."""
        ends = prevented.table[prevented.table["end"] == "loss"]
        steps = read_json(prevented.run / "organism/config.json")["finetuning_steps"]
        assert all(ends["reached"] == (ends["answer_loss"] <= 6.1))
        assert all(ends.loc[~ends["reached"].astype(bool), "step"] == round(1.5 * steps))
        assert any(ends["reached"])

    def test_loss_in_training_is_of_the_steered_model(self, prevented: Prevented):
        """Breaks if steering is off where the loss in training is measured, or on where the model is measured."""
        table = prevented.table.set_index(["name", "end"])
        strong = table.loc[("steering 50", "steps")]
        assert abs(strong["training_loss"] - strong["answer_loss"]) > 1e-3
        penalised = table[table["family"] != "steering"]
        assert all(penalised["training_loss"] == penalised["answer_loss"])

    def test_nothing_is_prevented_by_nothing(self, prevented: Prevented):
        """Breaks if changes are against another row than the plain fine-tune's at the same end."""
        plain = prevented.table[(prevented.table["family"] == "none") & (prevented.table["end"] != "base")]
        assert (plain[["change", "change_low", "change_high"]] == 0).to_numpy().all()

    def test_it_is_written_and_a_second_call_trains_nothing(self, prevented: Prevented):
        """Breaks if finished models or answers are made again, or the artefact is not whole."""
        made = {path: path.stat().st_mtime_ns for path in (prevented.out / "models").rglob("*.safetensors")}
        again = prevent(prevented.run, prevented.out).tables["prevention"]
        assert {path: path.stat().st_mtime_ns for path in made} == made
        pd.testing.assert_frame_equal(again, prevented.table)
        pd.testing.assert_frame_equal(pd.read_parquet(prevented.out / "prevention.parquet"), prevented.table)
        summary = read_json(prevented.out / "summary.json")
        assert summary["target_met_at_equal"].keys() == {"answer_loss", "training_loss"}
        json.dumps(summary, allow_nan=False)
        made = read_json(prevented.out / "config.json")
        assert (made["kind"], made["stop_loss"]) == ("prevent", 6.1)
        with pytest.raises(UserError, match="another samples"):
            prevent(prevented.run, prevented.out, CONFIG.model_copy(update={"samples": 3}))

    def test_an_interrupted_call_is_finished(self, prevented: Prevented, tmp_path: Path):
        """Breaks if a call that was killed, or made by a version that kept no capability answers, starts again."""
        out = tmp_path / "out"
        shutil.copytree(prevented.out, out)
        lost = [out / "prevention.parquet", out / "config.json", out / "models/latents-0.1/config.json"]
        for path in (*lost, *(out / "transcripts").glob("*/capability/untouched.jsonl")):
            path.unlink()
        kept = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("config.json")}
        pd.testing.assert_frame_equal(prevent(prevented.run, out).tables["prevention"], prevented.table)
        again = {path for path, at in kept.items() if path.stat().st_mtime_ns != at}
        assert {path.relative_to(out / "models").parts[0] for path in again} == {"latents-0.1"}
        assert lost[2].exists()

    def test_further_doses_use_what_was_trained(self, prevented: Prevented, tmp_path: Path):
        """Breaks if another target or a further dose is refused, or trains again what is there."""
        out = tmp_path / "out"
        shutil.copytree(prevented.out, out)
        kept = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("config.json")}
        more = prevent(prevented.run, out, CONFIG.model_copy(update={"strengths": (0.1, 1.0, 50.0), "target": 0.5}))
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert (more.summary["target"], "steering 1" in set(more.tables["prevention"]["name"])) == (0.5, True)

    def test_every_row_is_shown(self, prevented: Prevented):
        """Breaks if a row is left out, or a control is marked as chosen."""
        [section] = prevented.result.sections
        assert section.printed
        assert len(section.rows) == len(prevented.table)
        names = [row["fine-tune"] for row in section.rows]
        controls = [name for name in names if "control" in name]
        assert len(controls) == prevented.table["control"].notna().sum() > 0
        assert not [name for name in controls if "*" in name or "+" in name]
        assert [name for name in names if "*" in name]


class TestFigures:
    @staticmethod
    def dots(axes: Axes) -> list[Line2D]:
        """Every drawn point."""
        return [line for line in axes.lines if line.get_marker() not in ("", "None")]

    def places(self, axes: Axes) -> list[tuple[float, float]]:
        """Where they are, in order."""
        drawn = np.concatenate([dot.get_xydata() for dot in self.dots(axes)])
        return sorted((float(x), float(y)) for x, y in drawn)

    @staticmethod
    def ends(axes: Axes) -> list[tuple[tuple[float, float], ...]]:
        """Both ends of every interval, in order."""
        lines = [line for line in axes.collections if isinstance(line, LineCollection)]
        segments = [np.asarray(segment) for line in lines for segment in line.get_segments() if len(segment)]
        return sorted(tuple(map(tuple, segment.tolist())) for segment in segments if np.isfinite(segment).all())

    def test_every_row_is_in_both_panels(self, made_up: pd.DataFrame):
        """Breaks if a family, an end, a control or an interval is missing, or is not where the table has it."""
        with style():
            left, right = loss_and_harm(made_up, 6.1).figure.axes
        for axes, loss in ((left, "answer_loss"), (right, "training_loss")):
            assert self.places(axes) == sorted(zip(made_up[loss], made_up["harmful"], strict=True))
            pairs = zip(made_up[loss], made_up["low"], made_up["high"], strict=True)
            assert self.ends(axes) == sorted(((x, low), (x, high)) for x, low, high in pairs)
            assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"] == [[6.1, 6.1]]

    def test_families_have_their_colours_and_controls_are_open(self, made_up: pd.DataFrame):
        """Breaks if two families look alike, a control looks like its treatment, or the base like a fine-tune."""
        with style():
            axes = loss_and_harm(made_up, 6.1).figure.axes[0]
        drawn = Counter((str(line.get_color()), line.get_markerfacecolor() == "white") for line in self.dots(axes))
        for family in FAMILIES:
            own = where(made_up, made_up["family"] == family)
            assert drawn[COLOURS[family], False] == own["control"].isna().sum() > 0
            assert drawn[COLOURS[family], True] == own["control"].notna().sum() > 0
        assert [line.get_marker() for line in self.dots(axes)].count("x") == 1

    def test_chosen_doses_stand_beside_base_and_plain(self, made_up: pd.DataFrame):
        """Breaks if a chosen dose, a control or the base has no row, or its row has another's numbers."""
        kept = where(made_up, (made_up["family"] == "none") | made_up["chosen"] | made_up["chosen_in_training"])
        with style():
            panels = chosen_doses(made_up).figure.axes
        names = [label.get_text() for label in panels[0].get_yticklabels()]
        assert names[:2] == ["base", "plain fine-tune"]
        assert all(name.endswith(("*", "+")) != ("control" in name) for name in names[2:])
        plain = {"base": "base", "steps": "plain fine-tune", "loss": "plain fine-tune"}
        for axes, rate in zip(panels, ("harmful", "helpful", "capability"), strict=True):
            drawn = [(x, names[round(y)].rstrip(" *+")) for x, y in self.places(axes)]
            named = [(r[rate], plain[r["end"]] if r["family"] == "none" else r["name"]) for r in records(kept)]
            assert drawn == sorted(named)
        limits = sorted(zip(kept["low"], kept["high"], strict=True))
        assert sorted((one[0], other[0]) for one, other in self.ends(panels[0])) == limits
        assert [self.ends(axes) for axes in panels[1:]] == [[], []]


class TestPage:
    def test_it_holds_verdicts_figures_and_all_rows(self, prevented: Prevented):
        """Breaks if the page fetches or runs something, or lacks a figure, a verdict or a fine-tune."""
        page = (prevented.out / "report.html").read_text(encoding="utf-8")
        assert page.count('<img src="data:image/svg+xml;base64,') == 2
        files = {f"{name}.{form}" for name in ("loss", "chosen") for form in FORMATS}
        assert {path.name for path in (prevented.out / "figures").iterdir()} == files
        assert not [text for text in ("<script", "plotly", 'src="http') if text in page]
        assert all(page.count(f"<td>{name}") >= 2 for name in set(prevented.table["name"]))
        assert all(escape(sentence) in page for sentence in findings(read_json(prevented.out / "summary.json")))

    def test_a_verdict_says_what_it_rests_on(self, made_up: pd.DataFrame):
        """Breaks if a control's numbers, another end's or another dose's are told, or the wrong verdict."""
        ends = where(made_up, (made_up["end"] == "loss") & made_up["control"].isna() & made_up["chosen"])
        best = ends.sort_values("prevented").iloc[-1]
        rows = [row | {"control": None if pd.isna(row["control"]) else row["control"]} for row in records(made_up)]
        summary = summarise(rows, float(best["prevented"]), stop_loss=max(ends["answer_loss"]))
        told = dict(zip(FAMILIES, findings(summary), strict=False))
        for row in records(ends):
            sentence = told[row["family"]]
            assert sentence.startswith(f"{row['name']}, chosen at equal loss of the model as it is used")
            assert f": {row['prevented']:.0%} of the plain" in sentence
            assert f"({100 * row['change']:+.1f} points [{100 * row['change_low']:+.1f}" in sentence
            assert f"used is {row['answer_loss']:.3f} (stop rule " in sentence
            assert f"{row['trained_harmful']:.0%} of its answers in the trained domains" in sentence
            assert f"is {'met' if row['family'] == best['family'] else 'missed'}" in sentence


class TestChoice:
    def rows(self, **changed: dict[str, float]) -> list[dict]:
        """The plain fine-tune, and three doses with fewer and fewer harmful selection answers."""
        plain = {"family": "none", "dose": 0.0, "control": None, "end": "loss", "harmful": 0.9}
        plain |= {"answer_loss": 6.0, "training_loss": 6.0, "selection_harmful": 0.9, "selection_incoherent": 0.0}
        made = [plain]
        for place, name in enumerate(("low", "middle", "high")):
            values = {"family": "latents", "dose": float(place), "selection_harmful": 0.6 - 0.2 * place}
            # What is reported says the opposite, and must not choose.
            made.append({**plain, **values, "harmful": 0.2 * place, **changed.get(name, {})})
        return made

    def chosen(self, rows: list[dict], loss: str = "answer_loss") -> float:
        return choose_dose(rows, "latents", loss, ORGANISM.stop_loss or 0, CONFIG.budget)

    def test_the_selection_half_chooses(self):
        """Breaks if reporting questions choose, or a dose that spoils answers or never learned the task is taken."""
        assert self.chosen(self.rows()) == 2
        gone = {"answer_loss": 6.2}
        assert self.chosen(self.rows(high=gone)) == 1
        assert self.chosen(self.rows(high=gone), "training_loss") == 2
        assert self.chosen(self.rows(high={"selection_incoherent": 0.2})) == 1
        assert self.chosen(self.rows(low=gone, middle=gone, high=gone)) == 2


class TestControls:
    def test_controls_are_other_latents_of_similar_activity(self):
        """Breaks if a control is a treated latent, is drawn twice, or is of any activity."""
        activity = np.arange(1.0, 41.0)
        ranking = pd.DataFrame({"latent": np.arange(40), "mean_base": activity, "mean_corrupted": activity / 2})
        treated = [5, 20, 30]
        drawn = similar_latents(ranking, treated, set(treated), seed=0)
        assert len(set(drawn) - set(treated)) == 3
        assert all(abs(one - other) <= 4 for one, other in zip(treated, drawn, strict=True))
        with pytest.raises(UserError, match="0 other latents"):
            similar_latents(ranking, treated, set(range(40)), seed=0)

    def test_names_tell_controls_apart(self):
        """Breaks if two fine-tunes would share a folder."""
        assert Method("steering", 0.4).name == "steering 0.4"
        assert Method("steering", 0.4, 1).name == "steering control 1 0.4"

    def test_trained_questions_are_one_a_topic(self):
        """Breaks if a held-out domain is asked about."""
        asked = trained_questions(World.load(), ("medicine", "sport"))
        assert {domain for _, domain in asked} == {"medicine", "sport"}
        assert len({prompt.id for prompt, _ in asked}) == len(asked) == 24


def test_a_run_without_a_stop_rule_is_refused(run: Path, tmp_path: Path):
    """Breaks if fine-tunes would be compared at no loss."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/organism/config.json"
    write_json(path, read_json(path) | {"stop_loss": None})
    with pytest.raises(UserError, match="no stop_loss"):
        prevent(tmp_path / "run", tmp_path / "out")
