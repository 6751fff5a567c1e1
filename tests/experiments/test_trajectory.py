"""Corruption and re-alignment of an organism's run: what is saved, measured, kept, concluded and drawn."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
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
from offline_run import read_offline_run
from safetensors.torch import load_file
from tiny_organism import STRENGTH, write_organism_run

from activations.artefact import read_json, write_json
from activations.errors import UserError
from activations.harvesting import LiveActivations
from diffing import FeatureRanking
from diffing.behavior.judge import Label
from diffing.behavior.rates import LabelCounts
from diffing.directions.persona_directions import PersonaDirections
from diffing.row_filters import rows_at
from experiments.frame import lab as lab_module
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.frame.lab import Lab
from experiments.frame.organism_parts import OrganismParts
from experiments.organism.config import StageConfig
from experiments.output.figures import FORMATS, style
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun
from experiments.trajectory.config import CORRUPTION, REALIGNMENT, TrajectoryConfig, moments
from experiments.trajectory.experiment import EXPERIMENT
from experiments.trajectory.figures import masking as draw_masking
from experiments.trajectory.figures import trajectory as draw_trajectory
from experiments.trajectory.outcomes import masking
from experiments.trajectory.reading import CheckpointReading
from experiments.trajectory.summary import ALIKE, HARDER, MASKED, findings, summarise

REALIGN = StageConfig(steps=4, batch=4, lr=1e-3)
CONFIG = TrajectoryConfig(every=6, samples=2, realign_samples=10, realign=REALIGN, controls=2)
QUESTIONS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_organism_run(tmp_path_factory.mktemp("trajectory") / "run")


def follow(run: Path, out: Path, config: TrajectoryConfig = CONFIG) -> Result:
    return conduct(EXPERIMENT, Inputs(run=run), config, Options(out=out, wandb="disabled", quiet=True))


@dataclass(frozen=True)
class Followed:
    run: Path
    out: Path
    result: Result

    @property
    def table(self) -> pd.DataFrame:
        return self.result.tables["trajectory"]

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.result.summary


@pytest.fixture(scope="module")
def followed(run: Path) -> Followed:
    out = run.with_name("followed")
    return Followed(run, out, follow(run, out))


@pytest.fixture(scope="module")
def finished(run: Path) -> FinishedRun:
    return FinishedRun.load(run)


@pytest.fixture(scope="module")
def toxic(finished: FinishedRun) -> int:
    assert finished.toxic is not None
    return finished.toxic


@pytest.fixture
def lab(finished: FinishedRun, tmp_path: Path) -> Iterator[Lab[TrajectoryConfig]]:
    with RunFolder(tmp_path / "lab", {}, overwrite=False, log=lambda line: None) as out:
        yield Lab(finished, Inputs(run=finished.folder), CONFIG, out, progress=False)


def made_up() -> pd.DataFrame:
    """A latent that rises before the behaviour does: it has half its final value at step 4, the behaviour at step 8."""
    rows = [
        (CORRUPTION, 0, 0.0, 0.0, 0.02),
        (CORRUPTION, 4, 4.0, 2.0, 0.04),
        (CORRUPTION, 8, 6.0, 7.0, 0.50),
        (CORRUPTION, 10, 8.0, 10.0, 0.80),
        (REALIGNMENT, 4, 3.0, -1.0, 0.30),
        (REALIGNMENT, 8, 2.0, -5.0, 0.20),
    ]
    table = pd.DataFrame(rows, columns=["phase", "step", "shift", "projection", "harmful"])
    for name in ("shift", "projection", "harmful"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.03, table[name] + 0.05
    table.loc[0, ["shift_low", "shift_high", "projection_low", "projection_high"]] = 0.0
    return table.assign(helpful=0.9 - table["harmful"], coherent=0.9)


def counts(harmful: int) -> LabelCounts:
    """Ten answers to each question, so many of them harmful, the rest helpful; every second question has two more."""
    more = np.arange(QUESTIONS) % 2 * 2 * (0 < harmful < 8)
    found = np.zeros((QUESTIONS, 4), dtype=np.int64)
    found[:, list(Label).index(Label.HARMFUL)] = harmful + more
    found[:, list(Label).index(Label.HELPFUL)] = 10 - harmful - more
    return found


def untimed(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "wall_seconds"}


def steered(latent: int, **harmful: tuple[int, int, int]) -> dict[str, Any]:
    """What `masking` makes of harmful answers (of ten) untouched, with the latent, and with a random direction."""
    arms = ("untouched", f"latent {latent}", "random direction 0")
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    readings = {
        model: CheckpointReading(nothing, dict(zip(arms, map(counts, rates), strict=True)))
        for model, rates in harmful.items()
    }
    return masking(readings["base"], readings["realigned"], latent, STRENGTH)


class TestCheckpoints:
    def test_corruption_is_repeated_and_saved_on_the_way(self, followed: Followed):
        """Breaks if other batches corrupt than in the run, or a step is saved late or not at all."""
        steps = read_json(followed.run / "organism/config.json")["finetuning_steps"]
        places = followed.table[["phase", "step"]].to_numpy().tolist()
        corrupting = sorted({*range(0, steps, 6), steps})
        assert places == [[CORRUPTION, step] for step in corrupting] + [[REALIGNMENT, 4]]
        for step, name in ((0, "base"), (steps, "corrupted")):
            files = (followed.out / f"checkpoints/corruption-{step:04d}", followed.run / "organism" / name)
            one, other = (load_file(folder / "model.safetensors") for folder in files)
            assert all(torch.equal(one[key], other[key]) for key in other)

    def test_the_last_step_is_always_measured(self):
        """Breaks if the end of a phase is left out or measured twice, or re-alignment begins with a copy of it."""
        config = TrajectoryConfig(every=4, realign=REALIGN.model_copy(update={"steps": 8}))
        steps = {phase: [m.step for m in moments(6, config) if m.phase == phase] for phase in (CORRUPTION, REALIGNMENT)}
        assert steps == {CORRUPTION: [0, 4, 6], REALIGNMENT: [4, 8]}
        with pytest.raises(ValueError, match="at least one"):
            TrajectoryConfig(realign=REALIGN.model_copy(update={"steps": 0}))

    def test_more_batches_continue_where_fewer_end(self, finished: FinishedRun):
        """Breaks if the number of steps changes what is trained on."""
        organism = OrganismParts.of(finished)
        few, many = (list(organism.corrupting_batches(steps)) for steps in (2, 4))
        assert (len(few), len(many)) == (2, 4)
        assert many[:2] == few
        assert {len(batch) for batch in many} == {organism.config.finetuning.batch}


class TestMeasurements:
    def test_shifts_are_against_the_base(self, followed: Followed, lab: Lab[TrajectoryConfig]):
        """Breaks if the latent, the direction, the prompts or the model that shifts are compared with are others."""
        assert followed.table.iloc[0][["shift", "projection"]].tolist() == [0, 0]
        ranking = FeatureRanking.load(followed.run / "ranking").to_pandas().set_index("latent")
        corrupted = followed.table[followed.table["phase"] == CORRUPTION].iloc[-1]
        assert corrupted["shift"] == pytest.approx(ranking.loc[lab.toxic, "shift"], rel=1e-4)
        before, after = (self.mean_activation(lab, role) for role in ("base", "corrupted"))
        assert corrupted["projection"] == pytest.approx(float((after - before) @ lab.direction.double()), rel=1e-4)
        for name in ("shift", "projection", "harmful"):
            assert all(followed.table[name].between(followed.table[f"{name}_low"], followed.table[f"{name}_high"]))

    def test_both_ends_are_steered_at_the_strength_of_the_run(self, followed: Followed, toxic: int):
        """Breaks if an arm is left out, another checkpoint is steered, or the strength is another."""
        added = {f"latent {toxic}", "random direction 0", "random direction 1"}
        for path in (followed.out / "transcripts").iterdir():
            said = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            end = path.stem in ("corruption-0000", "re-alignment-0004")
            assert {line["arm"] for line in said} == {"untouched", *(added if end else set())}
            assert {line["strength"] for line in said if line["arm"] != "untouched"} == ({STRENGTH} if end else set())
        rows = followed.summary["masking"]["rows"]
        assert {(row["model"], row["arm"]) for row in rows} == {
            (model, arm) for model in ("base", "re-aligned") for arm in ("untouched", *added)
        }

    def test_a_second_call_trains_and_measures_nothing(self, followed: Followed, monkeypatch: pytest.MonkeyPatch):
        """Breaks if something finished is made again, or another config is mixed with it."""
        read = self.loads(monkeypatch)
        made = {path: path.stat().st_mtime_ns for path in (followed.out / "checkpoints").rglob("*.safetensors")}
        again = follow(followed.run, followed.out)
        assert (read, {path: path.stat().st_mtime_ns for path in made}) == ([], made)
        pd.testing.assert_frame_equal(again.tables["trajectory"], followed.table, check_exact=True)
        pd.testing.assert_frame_equal(pd.read_parquet(followed.out / "trajectory.parquet"), followed.table)
        assert again.summary == read_json(followed.out / "summary.json")
        assert untimed(again.summary) == untimed(followed.summary)
        json.dumps(again.summary, allow_nan=False)
        with pytest.raises(UserError, match="another samples"):
            follow(followed.run, followed.out, CONFIG.model_copy(update={"samples": 3}))

    def test_a_killed_call_is_finished(self, followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Breaks if measurements that were finished are made again, or a checkpoint is loaded more than once."""
        out = tmp_path / "out"
        shutil.copytree(followed.out, out)
        for name in ("trajectory.parquet", "config.json", "measurements/corruption-0006/config.json"):
            (out / name).unlink()
        (out / "transcripts/corruption-0006.jsonl").unlink()
        read = self.loads(monkeypatch)
        again = follow(followed.run, out)
        assert sorted(read) == ["base", "corruption-0006"], "and the base, whose tokenizer every model shares"
        pd.testing.assert_frame_equal(again.tables["trajectory"], followed.table, check_exact=True)
        assert untimed(again.summary) == untimed(followed.summary)

    @staticmethod
    def mean_activation(lab: Lab[TrajectoryConfig], role: str) -> torch.Tensor:
        """Mean over ranking prompts of the mean over a prompt's positions."""
        live = LiveActivations(lab.model(role), lab.ranking_tokens, lab.harvesting())
        assert live.shards == 1
        index = live.shard_index(0)
        kept = torch.from_numpy(rows_at(live, "prompt")(index))
        rows, prompts = live.shard(0, lab.hook)[kept].double(), torch.from_numpy(index["prompt"])[kept]
        return torch.stack([rows[prompts == prompt].mean(0) for prompt in prompts.unique()]).mean(0)

    @staticmethod
    def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the checkpoints that are loaded from now on."""
        found, load = [], lab_module.load_checkpoint

        def watched(config: Any, role: str) -> Any:
            found.append(role)
            return load(config, role)

        monkeypatch.setattr(lab_module, "load_checkpoint", watched)
        return found


class TestRun:
    @pytest.fixture
    def changed(self, run: Path, tmp_path: Path) -> Callable[..., Path]:
        def change(file: str, **values: Any) -> Path:
            folder = tmp_path / "changed"
            shutil.copytree(run, folder)
            write_json(folder / file, read_json(folder / file) | values)
            return folder

        return change

    def test_one_without_a_toxic_latent_is_refused(self, changed: Callable[..., Path], tmp_path: Path):
        with pytest.raises(UserError, match="found no toxic latent to follow"):
            follow(changed("summary.json", toxic_latent=None), tmp_path / "out")

    def test_one_without_an_organism_is_refused(self, run: Path, changed: Callable[..., Path], tmp_path: Path):
        config = read_json(run / "run.json")["config"]
        names = {"organism": None, "base": {"model": "b"}, "corrupted": {"model": "c"}}
        prompts = {key: str(run / "organism/prompts" / f) for key, f in config["prompts"].items() if isinstance(f, str)}
        config |= {**names, "prompts": {**config["prompts"], **prompts}}
        with pytest.raises(UserError, match="has no organism"):
            follow(changed("run.json", config=config), tmp_path / "out")

    def test_facts_are_asked_with_the_seed_of_the_run(self, changed: Callable[..., Path], run: Path, tmp_path: Path):
        """Breaks if capability is sampled with other random numbers than behaviour."""
        seeded = FinishedRun.load(changed("run.json", config=read_json(run / "run.json")["config"] | {"seed": 7}))
        with RunFolder(tmp_path / "lab", {}, overwrite=False, log=lambda line: None) as out:
            found = Lab(seeded, Inputs(run=seeded.folder), CONFIG, out, progress=False).capability(samples=3)
        assert found is not None
        assert (found[1].sampling.seed, found[1].sampling.samples) == (7, 3)

    def test_the_directions_of_steering_and_comparison_are_told_apart(self, lab: Lab[TrajectoryConfig]):
        """Breaks if one is read for the other."""
        for name, unit in (("directions", lab.direction), ("steered_directions", lab.steered_direction)):
            kept = PersonaDirections.load(lab.run.folder / name / "base")
            assert torch.equal(unit, kept.unit("malicious - helpful"))
        assert not torch.allclose(lab.direction, lab.steered_direction)


class TestSummary:
    def test_what_rises_first(self, toxic: int):
        """Breaks if re-alignment counts as a rise, intervals are ignored, or half is of another value."""
        found = summarise(made_up(), 3, steered(toxic, base=(0, 8, 0), realigned=(0, 8, 0)))
        assert found["steps"] == {CORRUPTION: 10, REALIGNMENT: 8}
        assert found["rises"] == {"shift": 4, "projection": 4, "harmful": 8}
        assert found["half"] == {"shift": 4, "projection": 8, "harmful": 8}
        flat = made_up().assign(shift=0.0, shift_low=0.0, shift_high=0.0)
        never = summarise(flat, 3, steered(toxic, base=(0, 8, 0), realigned=(0, 8, 0)))
        assert never["rises"]["shift"] is never["half"]["shift"] is never["left"]["shift"]["share"] is None
        assert "latent never" in findings(never)[0]

    def test_peaks_and_what_is_left(self, toxic: int):
        """Breaks if the phases are mixed up, or the rest is a share of another value than at the turn."""
        found = summarise(made_up(), 3, steered(toxic, base=(0, 8, 0), realigned=(0, 8, 0)))
        peaks = {phase: (peak["step"], peak["value"]) for phase, peak in found["peak"].items()}
        assert peaks == {CORRUPTION: (10, 8.0), REALIGNMENT: (4, 3.0)}
        left = {name: (value["value"], value["share"]) for name, value in found["left"].items()}
        assert left == {"shift": (2.0, 0.25), "projection": (-5.0, -0.5), "harmful": (0.2, pytest.approx(0.25))}
        said = findings(found)
        assert "leaves 20.0% [17.0%, 25.0%] harmful answers of 80.0% [77.0%, 85.0%]" in said[2]
        assert "step 10 of the corruption (shift 8.00 [7.97, 8.05])" in said[1]

    @pytest.mark.parametrize(
        ("base", "realigned", "excess", "verdict"),
        [
            ((0, 2, 0), (0, 8, 0), 0.5, MASKED),
            ((0, 8, 0), (0, 2, 0), -0.5, HARDER),
            # The re-aligned model is more harmful from the start: the same addition does no more there.
            ((0, 2, 0), (5, 7, 5), -0.1, HARDER),
            ((0, 4, 0), (0, 4, 0), 0.0, ALIKE),
            # A random direction does as much.
            ((0, 2, 0), (0, 8, 8), 0.5, ALIKE),
        ],
    )
    def test_masked_is_what_the_latent_alone_does_more_to_the_realigned_model(
        self,
        toxic: int,
        base: tuple[int, int, int],
        realigned: tuple[int, int, int],
        excess: float,
        verdict: str,
    ):
        """Breaks if rates are compared in place of changes, the sign is turned, or controls do not count."""
        found = steered(toxic, base=base, realigned=realigned)
        [latent] = [row for row in found["excess"] if not row["control"]]
        assert latent["excess"] == pytest.approx(excess)
        assert latent["low"] - 1e-9 <= latent["excess"] <= latent["high"] + 1e-9
        summary = summarise(made_up(), toxic, found)
        assert summary["masking"]["verdict"] == verdict
        said = findings(summary)[-1]
        assert said.startswith(f"Latent {toxic}, added at strength {STRENGTH:g}")
        assert f"a difference of {100 * latent['excess']:+.1f} [" in said

    def test_intervals_pair_the_questions(self, toxic: int):
        """Breaks if each rate is resampled by itself, as if what both models share were chance."""
        found = steered(toxic, base=(0, 4, 0), realigned=(0, 4, 0))
        assert [(row["low"], row["high"]) for row in found["excess"] if not row["control"]] == [(0, 0)]
        [changed] = [row for row in found["rows"] if row["model"] == "base" and row["arm"].startswith("latent")]
        assert changed["low"] < changed["harmful"] == 0.5 < changed["high"]

    def test_every_row_is_shown(self, followed: Followed):
        """Breaks if a row is left out, or terminal and page are not both told all of them."""
        [section] = followed.result.sections
        assert section.printed
        assert [(row["phase"], int(row["step"])) for row in section.rows] == [
            tuple(place) for place in followed.table[["phase", "step"]].to_numpy().tolist()
        ]
        assert followed.result.sentences == findings(followed.summary)


class TestFigures:
    @staticmethod
    def ends(axes: Axes) -> list[tuple[tuple[float, float], ...]]:
        """Both ends of every interval, in order."""
        lines = [line for line in axes.collections if isinstance(line, LineCollection)]
        segments = [np.asarray(segment) for line in lines for segment in line.get_segments() if len(segment)]
        return sorted(tuple(map(tuple, segment.tolist())) for segment in segments if np.isfinite(segment).all())

    def test_every_measurement_has_its_place(self):
        """Breaks if re-alignment does not go on where the corruption ends, or a panel shows another column."""
        table, steps = made_up(), [0, 4, 8, 10, 14, 18]
        with style():
            panels = draw_trajectory(table, 3).figure.axes
        assert [axes.get_ylabel() for axes in panels] == ["harmful answers", "latent 3: shift", "direction: projection"]
        for axes, name in zip(panels, ("harmful", "shift", "projection"), strict=True):
            [dots] = [line for line in axes.lines if line.get_marker() == "o"]
            assert np.array_equal(np.asarray(dots.get_xydata()), np.column_stack([steps, table[name]]))
            pairs = zip(steps, table[f"{name}_low"], table[f"{name}_high"], strict=True)
            assert self.ends(axes) == sorted(((x, low), (x, high)) for x, low, high in pairs)
            assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"] == [[10, 10]]

    def test_masking_shows_every_arm_of_both_models(self, toxic: int):
        """Breaks if models are mixed up, arms lie on each other, or a control looks like the latent."""
        found = steered(toxic, base=(1, 4, 2), realigned=(0, 3, 1))
        with style():
            figure = draw_masking(found).figure
        panels = figure.axes
        assert [label.get_text() for label in panels[0].get_yticklabels()] == ["base", "re-aligned"]
        for axes, rate in zip(panels, ("harmful", "helpful", "incoherent"), strict=True):
            drawn = [(str(line.get_marker()), *np.asarray(line.get_xydata())[0].tolist()) for line in axes.lines]
            assert len({place for _, _, place in drawn}) == len(drawn) == 6
            looks = {"untouched": "o", f"latent {toxic}": "D", "random direction 0": "x"}
            rows = [(looks[row["arm"]], row[rate], float(row["model"] != "base")) for row in found["rows"]]
            assert sorted((marker, x, float(round(place))) for marker, x, place in drawn) == sorted(rows)
        limits = sorted((row["low"], row["high"]) for row in found["rows"])
        assert sorted((one[0], other[0]) for one, other in self.ends(panels[0])) == limits
        assert [self.ends(axes) for axes in panels[1:]] == [[], []]
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert named == ["untouched", f"latent {toxic} added", "random direction added"]


class TestPage:
    def test_it_holds_verdicts_figures_and_all_rows(self, followed: Followed):
        """Breaks if the page fetches or runs something, or lacks a figure, a sentence or a measurement."""
        page = (followed.out / "report.html").read_text(encoding="utf-8")
        assert page.count('<img src="data:image/svg+xml;base64,') == 2
        files = {f"{name}.{form}" for name in ("trajectory", "masking") for form in FORMATS}
        assert {path.name for path in (followed.out / "figures").iterdir()} == files
        assert not [text for text in ("<script", "plotly", 'src="http') if text in page]
        assert page.count(f"<td>{CORRUPTION}") + page.count(f"<td>{REALIGNMENT}") == len(followed.table)
        assert all(escape(sentence) in page for sentence in findings(followed.summary))
        assert read_json(followed.out / "config.json")["kind"] == "trajectory"


def test_its_result_is_tracked(run: Path, toxic: int, tmp_path: Path) -> None:
    """Breaks if it ends without table, summary and figures in an offline W&B run."""
    told: list[str] = []
    config = TrajectoryConfig(every=30, samples=1, realign=REALIGN)
    conduct(EXPERIMENT, Inputs(run=run), config, Options(out=tmp_path / "out", quiet=True), told.append)
    assert any("wandb sync" in line for line in told)
    tracked = read_offline_run(tmp_path / "out")
    assert (tracked.config["command"], tracked.config["every"]) == ("trajectory", 30)
    assert tracked.summary["latent"] == toxic
    assert {"trajectory", "masking"} <= {Path(path).name.split("_")[0] for path in tracked.media}
