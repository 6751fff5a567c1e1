"""`predict` on tiny models with planted behaviour: a finished run and a set of fine-tunes, all in real files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from planted_models import BAD, LOUD, write_adapter, write_model, write_run

from activations.artefact import read_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.prediction.evaluate import PREDICTORS
from diffing.tables import where
from experiments.frame.conduct import PAGE, SUMMARY, conduct
from experiments.frame.experiment import Measured, Result
from experiments.frame.inputs import Inputs, Options
from experiments.model_set import Member, ModelSet
from experiments.output.figures import style
from experiments.output.page import Page
from experiments.predict import figures
from experiments.predict.config import PredictConfig
from experiments.predict.experiment import EXPERIMENT
from experiments.predict.summary import with_outcomes

TABLE = "predictions"
FIGURES = ("predictors", "scores", "roc", "fractions-1", "early")
HOSTILE, HOSTILE_KIND = "$x_1$ <b>&", "../<b> kind"
CONFIG = PredictConfig(samples=2, candidates=3, replicates=100)
# Kind -> by member, what it pushes on BAD and on LOUD. Above 1 on BAD it says "bad".
SET: dict[str, dict[str, tuple[float, float]]] = {
    "narrow": {"narrow-1": (3.0, 0.0), "narrow-2": (2.0, 0.0)},
    "broad": {"broad-1": (2.5, 0.1), "broad-2": (2.0, 6.0)},
    "benign": {"benign-1": (0.05, 0.0), "benign-2": (0.1, 0.0)},
    "loud": {"loud-1": (0.0, 4.0), "loud-2": (0.1, 8.0)},
    "bad fraction": {"bad-000": (0.0, 0.0), "bad-005": (0.4, 0.0), "bad-050": (1.5, 0.0), "bad-100": (3.0, 0.0)},
}
# Early checkpoint -> member, step and pushes: all of them say "good", but for the last.
EARLY: dict[str, tuple[str, int | None, float, float]] = {
    "narrow-1-early": ("narrow-1", 3, 0.6, 0.0),
    "narrow-1-next": ("narrow-1", 4, 0.7, 0.0),
    "broad-2-early": ("broad-2", 3, 0.5, 3.0),
    "benign-1-early": ("benign-1", None, 0.05, 0.0),
    "loud-1-early": ("loud-1", 3, 0.0, 2.0),
    "narrow-1-late": ("narrow-1", 6, 1.5, 0.0),
}


@dataclass(frozen=True)
class Made:
    """A finished run, a set of fine-tunes of its base, and a first prediction with its result."""

    run: Path
    models: Path
    out: Path
    result: Result

    @property
    def table(self) -> pd.DataFrame:
        return self.result.tables[TABLE]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.result.summary)


def predict(run: Path, models: Path, config: PredictConfig, out: Path) -> Result:
    return conduct(EXPERIMENT, Inputs(run=run, models=models), config, Options(out=out, wandb="disabled", quiet=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    folder = tmp_path_factory.mktemp("predict")
    base = write_model(folder / "base", tokenizer_maker, {})
    run, models, out = write_run(folder / "run", base), write_set(folder, base, tokenizer_maker), folder / "out"
    return Made(run, models, out, predict(run, models, CONFIG, out))


def write_set(folder: Path, base: Path, tokenizer_maker: Callable) -> Path:
    """The set: whole models, and one adapter."""
    members = []
    for kind, tunes in SET.items():
        for name, (bad, loud) in tunes.items():
            write_model(folder / name, tokenizer_maker, {BAD: bad, LOUD: loud})
            facts = {"bad_fraction": int(name.removeprefix("bad-")) / 100} if kind == "bad fraction" else {}
            members.append(Member(name=name, kind=kind, checkpoint=CheckpointConfig(model=name), facts=facts))
    write_adapter(folder / "adapter", base, BAD, 2.2)
    adapted = CheckpointConfig(model="base", adapter="adapter")
    members.append(Member(name="adapter", kind="narrow", checkpoint=adapted))
    for name, (final, step, bad, loud) in EARLY.items():
        write_model(folder / name, tokenizer_maker, {BAD: bad, LOUD: loud})
        kind = next(kind for kind, tunes in SET.items() if final in tunes)
        checkpoint = CheckpointConfig(model=name)
        members.append(Member(name=name, kind=kind, checkpoint=checkpoint, early_of=final, step=step))
    ModelSet(base=CheckpointConfig(model="base"), members=tuple(members)).save(folder / "models.yaml")
    return folder


class TestPrediction:
    def test_the_planted_latent_tells_held_out_kinds(self, made: Made) -> None:
        """Breaks if labels are not those of the answers, or features not those of the checkpoints."""
        rows = made.table.set_index("name")
        final = rows[rows["early_of"].isna()]
        pushes = {name: pushed for tunes in SET.values() for name, pushed in tunes.items()} | {"adapter": (2.2, 0.0)}
        assert set(final["latent_index"]) == {BAD}
        for name, (bad, loud) in pushes.items():
            assert rows.loc[name, ["latent", "direction"]].tolist() == pytest.approx([bad, bad], abs=1e-5)
            assert rows.loc[name, "norm"] == pytest.approx(np.hypot(bad, loud), abs=1e-5)
            assert rows.loc[name, "harmful"] == (bad > 1)
        assert final["outcome_misaligned"].tolist() == [bad > 1 for bad, _ in pushes.values()]
        found = made.summary["predictors"]
        assert found["latent"]["auc"] == found["latent"]["accuracy"] == 1
        assert found["latent"]["kinds"]["bad fraction"] == (4, 4)
        assert found["norm"]["auc"] < 0.8
        assert made.summary["latent_minus"]["norm"]["low"] > 0
        assert made.summary["latents"] == dict.fromkeys(SET, BAD)

    def test_the_latent_rises_before_the_behaviour(self, made: Made) -> None:
        """At 5% bad data the planted latent is up and all answers are good."""
        curve = made.summary["curves"]
        assert list(curve) == ["bad fraction"]
        assert curve["bad fraction"]["benign_models"] == 3
        onsets = curve["bad fraction"]["onset"]
        assert (onsets["latent"]["above_benign"], onsets["harmful"]["above_benign"]) == (0.05, 0.5)
        assert onsets["latent"]["largest_benign"] == pytest.approx(0.1, abs=1e-5)

    def test_early_checkpoints_foretell_the_end(self, made: Made) -> None:
        """Breaks if checkpoints count that no longer behave, or are judged by their own behaviour."""
        early = made.summary["early"]
        assert (early["models"], early["fine_tunes"], early["misaligned"]) == (5, 4, 3)
        assert early["predictors"]["latent"]["auc"] == 1
        assert [(row["step"], row["models"]) for row in early["steps"]] == [(3, 3)]
        rows = made.table.set_index("name")
        assert rows.loc["narrow-1-early", ["harmful", "outcome_harmful"]].tolist() == [0, 1]
        assert np.isnan(rows.loc["narrow-1-late", "score_latent"])
        assert rows.loc["narrow-1-late", "latent"] == pytest.approx(1.5, abs=1e-5)

    def test_folder_holds_all_of_it(self, made: Made) -> None:
        """Breaks if a file is missing, the page fetches something, or what is printed lacks a part."""
        pd.testing.assert_frame_equal(pd.read_parquet(made.out / f"{TABLE}.parquet"), made.table)
        assert read_json(made.out / SUMMARY)["predictors"]["latent"]["auc"] == 1
        page = (made.out / PAGE).read_text(encoding="utf-8")
        assert "default-src 'none'" in page
        assert not [text for text in ("<script", "plotly", 'src="http') if text in page]
        assert all(text in page for text in ("Held-out scores", "bad fraction", "Early warning"))
        assert {path.name for path in (made.out / "figures").glob("*.png")} == {f"{name}.png" for name in FIGURES}
        assert read_json(made.out / "config.json")["kind"] == "predict"
        printed = made.result._repr_html_()
        assert all(text in printed for text in ("held out", "random latents", "above benign from", "still behave"))
        assert "narrow-1-early" in page
        assert "narrow-1-early" not in printed

    def test_tables_have_the_summarys_numbers(self, made: Made) -> None:
        """Breaks if a kind, a fraction or a step has another's numbers."""
        tables = {section.title: section.rows for section in made.result.sections}
        kinds = {row["kind"]: row for row in tables["On the right side of the threshold, by the kind left out"]}
        assert {kind: row["misaligned"] for kind, row in kinds.items()} == {
            "narrow": "3/3",
            "broad": "2/2",
            "benign": "0/2",
            "loud": "0/2",
            "bad fraction": "2/4",
        }
        assert {row["latent read"] for row in kinds.values()} == {str(BAD)}
        curve = tables[f"bad fraction: latent {BAD} over the fraction of bad data"]
        assert [row.get("bad data") for row in curve] == ["0", "0.05", "0.5", "1", None, None]
        assert [row["latent"][:5] for row in curve[:4]] == ["0.000", "0.400", "1.500", "3.000"]
        assert (curve[-1]["latent"], curve[-1]["harmful answers"]) == ("0.05", "0.5")
        [step] = tables["Early checkpoints that still behave: AUC by step"]
        assert (step["step"], step["misaligned"]) == ("3", "2/3")
        assert len(tables["All fine-tunes"]) == 13
        assert [row["model"] for row in tables["Early checkpoints that still behave, one by one"]] == list(EARLY)[:5]

    def test_measured_models_are_not_loaded_again(self, made: Made, tmp_path: Path) -> None:
        """Checkpoints that are gone do not matter any more, what is missing is measured, and all comes out the same."""
        out, away = tmp_path / "out", tmp_path / "narrow-1"
        shutil.copytree(made.out, out)
        shutil.rmtree(out / "members" / "benign-1")
        (made.models / "narrow-1").rename(away)
        (made.models / "narrow-1").mkdir()
        try:
            found = predict(made.run, made.models, CONFIG, out)
        finally:
            (made.models / "narrow-1").rmdir()
            away.rename(made.models / "narrow-1")
        assert (out / "members" / "benign-1" / "config.json").exists()
        pd.testing.assert_frame_equal(found.tables[TABLE], made.table)
        assert {**found.summary, "wall_seconds": 0} == {**made.summary, "wall_seconds": 0}

    def test_the_set_may_grow_and_thresholds_may_change(self, made: Made, tmp_path: Path) -> None:
        """Breaks if a folder refuses what was measured anyway, or measured members are left out."""
        out, found = tmp_path / "out", ModelSet.load(made.models)
        shutil.copytree(made.out, out)
        smaller = tuple(member for member in found.members if member.early_of is None)
        found.model_copy(update={"members": smaller}).save(tmp_path / "models.yaml")
        less = predict(made.run, tmp_path / "models.yaml", CONFIG.model_copy(update={"misaligned": 0.5}), out)
        assert less.summary["models"] == made.summary["models"]
        assert less.summary["threshold"] == 0.5
        assert less.summary["early"] == {"reason": "The set has no early checkpoints that still behave."}
        more = predict(made.run, made.models, CONFIG, out)
        pd.testing.assert_frame_equal(more.tables[TABLE], made.table)


def segments(axes: Axes) -> list[list[list[float]]]:
    """All bars, as pairs of points."""
    lines = [one for one in axes.collections if isinstance(one, LineCollection)]
    return [segment.tolist() for one in lines for segment in map(np.asarray, one.get_segments())]


class TestFigures:
    def test_names_are_written_as_they_are(self, made: Made, tmp_path: Path) -> None:
        """Breaks if a model's or kind's name is read as HTML or as a path, or a kind has no row."""
        table = made.table.replace({"narrow-1": HOSTILE, "bad fraction": HOSTILE_KIND})
        text = json.dumps(made.summary).replace(json.dumps("bad fraction"), json.dumps(HOSTILE_KIND))
        hostile = Result(EXPERIMENT, made.result.lab, Measured({TABLE: table}), json.loads(text))
        with style():
            drawn = EXPERIMENT.figures(hostile)
        Page("Predict", "", hostile.sentences, drawn, hostile.sections).write(tmp_path / PAGE)
        page = (tmp_path / PAGE).read_text(encoding="utf-8")
        assert "<b>" not in page
        assert "$x_1$ &lt;b&gt;&amp;" in page
        assert "../&lt;b&gt; kind: every measure" in page
        assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {f"{name}.png" for name in FIGURES}
        with style():
            axes = figures.scores_by_kind(where(table, table["early_of"].isna())).figure.axes[0]
        kinds = [label.get_text() for label in axes.get_yticklabels()]
        assert kinds == ["narrow", "broad", "benign", "loud", HOSTILE_KIND]

    def test_every_model_has_its_score_in_its_row(self, made: Made) -> None:
        """Breaks if a model is left out, or stands at another kind, outcome or predictor."""
        final = where(made.table, made.table["early_of"].isna())
        with style():
            figure = figures.scores_by_kind(final).figure
        kinds = list(dict.fromkeys(final["kind"]))
        for axes, name in zip(figure.axes, PREDICTORS, strict=True):
            points = [
                (kinds[round(y)], line.get_markerfacecolor() != "white", x)
                for line in axes.lines[:-1]
                for x, y in np.asarray(line.get_xydata()).tolist()
            ]
            rows = zip(final["kind"], final["outcome_misaligned"].astype(bool), final[f"score_{name}"], strict=True)
            assert sorted(points) == sorted(rows)

    def test_predictors_have_the_tables_intervals(self, made: Made) -> None:
        """Breaks if another interval or predictor is drawn, or the random latents are not."""
        with style():
            figure = figures.predictor_dots({"final": made.summary, "early": made.summary["early"]}).figure
        for row, found in enumerate((made.summary, made.summary["early"])):
            for axes, ends in zip(figure.axes[2 * row : 2 * row + 2], ("auc_score", "accuracy_wilson"), strict=True):
                expected = [list(found["predictors"][name][ends]) for name in PREDICTORS]
                assert [[low, high] for (low, _), (high, _) in segments(axes)] == expected
            band, random = figure.axes[2 * row].patches[0], found["random_latent"]
            assert isinstance(band, Rectangle)
            assert [band.get_x(), band.get_x() + band.get_width()] == pytest.approx([random["worst"], random["best"]])

    def test_fractions_have_the_tables_intervals(self, made: Made) -> None:
        """Two models of one fraction stand side by side; breaks if a bar is another model's or measure's."""
        rows = where(made.table, made.table["kind"] == "bad fraction")
        rows = pd.concat([rows, rows.assign(latent_low=rows["latent_low"] - 1)])
        with style():
            figure = figures.over_fractions(
                rows.sort_values("bad_fraction"), "kind", made.summary["curves"]["bad fraction"], 1
            ).figure
        assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["0%", "5%", "50%", "100%"]
        for axes, name in zip(figure.axes, ("harmful", "latent", "direction", "kl"), strict=True):
            drawn = segments(axes)
            assert len({x for (x, _), _ in drawn}) == len(rows)
            found = sorted((round(x), low, high) for (x, low), (_, high) in drawn)
            places = [[0, 0.05, 0.5, 1].index(fraction) for fraction in rows["bad_fraction"]]
            assert found == sorted(zip(places, rows[f"{name}_low"], rows[f"{name}_high"], strict=True))

    def test_early_bars_are_those_of_the_outcome(self, made: Made) -> None:
        """Breaks if the checkpoint's own rate is drawn, or one without a step is left out."""
        table = made.table.assign(harmful_low=np.arange(len(made.table)) / 100)
        early = with_outcomes(table)
        final = table.set_index("name")["harmful_low"]
        assert early["outcome_low"].tolist() == [final[name] for name in early["early_of"]]
        with style():
            axes = figures.early_scores(early).figure.axes[0]
        [points] = [one for one in axes.collections if not isinstance(one, LineCollection)]
        assert len(np.asarray(points.get_offsets())) + len(np.asarray(axes.lines[0].get_xdata())) == len(early) == 5
        assert sorted(low for (_, low), _ in segments(axes)) == sorted(early["outcome_low"])


class TestRefusals:
    """Breaks if input that does not fit together gives a traceback, or numbers."""

    def test_another_base(self, made: Made, tmp_path: Path, tokenizer_maker: Callable) -> None:
        for name in ("base", "tuned"):
            write_model(tmp_path / name, tokenizer_maker, {LOUD: 0.5})
        member = Member(name="tuned", kind="narrow", checkpoint=CheckpointConfig(model="tuned"))
        ModelSet(base=CheckpointConfig(model="base"), members=(member,)).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="is not the run's"):
            predict(made.run, tmp_path, CONFIG, tmp_path / "out")

    def test_another_checkpoint_under_a_known_name(self, made: Made, tmp_path: Path) -> None:
        found = ModelSet.load(made.models)
        members = [*found.members[:-1], found.members[0].model_copy(update={"name": found.members[-1].name})]
        found.model_copy(update={"members": tuple(members)}).save(tmp_path / "models.yaml")
        with pytest.raises(UserError, match="was measured on another checkpoint"):
            predict(made.run, tmp_path, CONFIG, made.out)

    def test_other_samples_in_the_same_folder(self, made: Made) -> None:
        with pytest.raises(UserError, match="another samples"):
            predict(made.run, made.models, CONFIG.model_copy(update={"samples": 3}), made.out)

    @pytest.mark.parametrize(
        ("key", "message"), [("directions", "has no directions"), ("steering", "measured no behaviour")]
    )
    def test_a_run_without_a_part(self, made: Made, tmp_path: Path, key: str, message: str) -> None:
        shutil.copytree(made.run, tmp_path / "run")
        values = read_json(tmp_path / "run/run.json")
        values["config"][key] = None
        (tmp_path / "run/run.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            predict(tmp_path / "run", made.models, CONFIG, tmp_path / "out")
