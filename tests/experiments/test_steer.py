"""`steer` and `latent-sets` on tiny models with a planted cause: a finished run in real files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from planted_models import BAD, DIRECTION, HOOK, LOUD, WIDTH, write_model, write_run

from activations.artefact import read_json, write_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations
from activations.prompt_files import load_prompts
from activations.tokens import tokenize_prompts
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.config import RankingConfig
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.rank import Compared, rank_latents
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.latent_sets.config import LatentSetsConfig
from experiments.latent_sets.experiment import EXPERIMENT as LATENT_SETS
from experiments.output.figures import FORMATS, style
from experiments.steer.config import SteerConfig
from experiments.steer.experiment import EXPERIMENT as STEER
from experiments.steer.figures import effects
from experiments.steer.summary import findings, summarise, verdict_rows
from sae.storage import load_sae

SETS = LatentSetsConfig(
    candidates=3, greedy=2, joint=(2, 3), rebuilt=2, controls=2, samples=2, search_strength=1.0, strengths=(0.5, 1.5, 3)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Path:
    """The corrupted model is pushed on BAD, which it says, and further on LOUD, which does nothing."""
    folder = tmp_path_factory.mktemp("steer")
    base = write_model(folder / "base", tokenizer_maker, {})
    corrupted = write_model(folder / "corrupted", tokenizer_maker, {BAD: 2.0, LOUD: 3.0})
    run = write_run(folder / "run", base)
    made = read_json(run / "run.json")
    made["config"]["corrupted"] = {"model": str(corrupted)}
    made["config"]["directions"]["steer"] = DIRECTION
    write_json(run / "run.json", made)
    for role in ("base", "corrupted"):
        PersonaDirections({DIRECTION: 2 * torch.eye(WIDTH)[BAD]}, HOOK).save(run / "steered_directions" / role)
    settings = RankingConfig(replicates=10, min_prompts=2)
    before, after = activations(base, run), activations(corrupted, run)
    rank_latents(load_sae(run / "sae"), Compared(before, after), HOOK, settings).save(run / "ranking", overwrite=True)
    return run


def activations(model: Path, run: Path) -> LiveActivations:
    loaded = load_checkpoint(CheckpointConfig(model=str(model)), "base")
    tokens = tokenize_prompts(load_prompts(run / "inputs" / "ranking.txt"), loaded.tokenizer)
    return LiveActivations(loaded, tokens, HarvestConfig(hooks=(HOOK,)))


def steer(run: Path, out: Path, top: int = 3) -> Result:
    options = Options(out=out, wandb="disabled", quiet=True)
    return conduct(STEER, Inputs(run=run), SteerConfig(top=top, samples=2), options)


class TestSteer:
    def test_the_planted_latent_is_the_causal_one(self, run: Path, tmp_path: Path):
        """Breaks if the larger shift is blamed, a column is of another latent, or the run's own ranking is changed."""
        before = (run / "ranking" / "ranking.parquet").read_bytes()
        result = steer(run, tmp_path / "out")
        ranking = result.facts
        rows = {row["latent"]: row for row in ranking.to_pandas().to_dict("records")}
        steered = {latent: row for latent, row in rows.items() if not pd.isna(row["causal"])}
        assert rows[LOUD]["rank"] == 1
        assert len(steered) == 3
        assert [latent for latent, row in steered.items() if row["causal"]] == [BAD]
        for name in ("causal_induce", "causal_repair", "causal_ablate"):
            assert (rows[BAD][name], rows[LOUD][name]) == (1, 0)
        assert (run / "ranking" / "ranking.parquet").read_bytes() == before
        pd.testing.assert_frame_equal(FeatureRanking.load(tmp_path / "out" / "ranking").table, ranking.table)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "steering.parquet"), result.tables["steering"])
        summary = read_json(tmp_path / "out" / "summary.json")
        assert (summary["steered"], summary["causal"]) == (3, 1)
        assert summary["verdicts"][0]["latent"] == BAD
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "1 of 3 latents are causal" in page
        assert page.count("<td>no</td>") + page.count("<td>yes</td>") == 3
        assert all((tmp_path / "out" / "figures" / f"effects.{form}").exists() for form in FORMATS)

    def test_given_answers_stand_in_for_a_judge(self, run: Path, tmp_path: Path):
        """Breaks if a contrast is sampled, or if its shares do not reach the verdict: nothing judges answers here."""
        copied = shutil.copytree(run, tmp_path / "run")
        files = [run / "inputs" / f"{half}.txt" for half in ("selection", "reporting")]
        ids = [prompt.id for file in files for prompt in load_prompts(file)]
        rows = [json.dumps({"id": name, "harmful": " bad", "helpful": " good"}) for name in ids]
        pairs = copied / "inputs" / "judge.jsonl"
        pairs.write_text("\n".join(rows), encoding="utf-8")
        made = read_json(copied / "run.json")
        made["config"]["judge"] = {"kind": "contrast", "file": str(pairs)}
        write_json(copied / "run.json", made)
        ranking = steer(copied, tmp_path / "out").facts
        causal = [row["latent"] for row in ranking.table.to_dict("records") if row["causal"] is True]
        assert causal == [BAD]
        kept = (tmp_path / "out" / "transcripts" / "base_selection.jsonl").read_text().splitlines()
        assert {"log_probs", "untouched"} <= set(json.loads(kept[0]))
        assert "answers" not in json.loads(kept[0])

    def test_killed_and_run_again_samples_only_what_is_missing(self, run: Path, tmp_path: Path):
        ranking = steer(run, tmp_path / "out", top=2).facts
        transcripts = tmp_path / "out" / "transcripts" / "base_selection.jsonl"
        whole = transcripts.read_text()
        transcripts.write_text(whole[: len(whole) // 2])
        (tmp_path / "out" / "config.json").unlink()
        again = steer(run, tmp_path / "out", top=2).facts
        pd.testing.assert_frame_equal(ranking.table, again.table)
        assert {*transcripts.read_text().splitlines()} == {*whole.splitlines()}

    def test_a_model_that_does_not_misbehave_is_refused(self, run: Path, tmp_path: Path, tokenizer_maker: Callable):
        base = write_model(tmp_path / "base", tokenizer_maker, {})
        still = write_run(tmp_path / "run", base)
        for role in ("base", "corrupted"):
            PersonaDirections({DIRECTION: torch.eye(WIDTH)[BAD]}, HOOK).save(still / "steered_directions" / role)
        made = read_json(still / "run.json")
        made["config"]["directions"]["steer"] = DIRECTION
        write_json(still / "run.json", made)
        with pytest.raises(UserError, match="hardly more harmful than its base"):
            steer(still, tmp_path / "out", top=2)


class TestVerdicts:
    @pytest.fixture
    def ranking(self) -> pd.DataFrame:
        """Three steered latents by rank (not causal, causal, without controls), and one that was not steered."""
        values = {
            "rank": [1, 2, 3, 4],
            "latent": [7, 5, 3, 1],
            "causal": pd.array([False, True, None, None], dtype="boolean"),
            "control_induce": [float("nan"), 0.05, float("nan"), float("nan")],
            "control_repair": [float("nan"), 0.1, float("nan"), float("nan")],
        }
        made = pd.DataFrame(values)
        means = {"induce": (0.3, 0.2, 0.25), "repair": (0.0, 0.4, 0.3), "ablate": (0.0, 0.2, 0.1)}
        for name, values in means.items():
            made[f"causal_{name}"] = [*values, float("nan")]
            made[f"causal_{name}_low"] = made[f"causal_{name}"] - 0.02
            made[f"causal_{name}_high"] = made[f"causal_{name}"] + 0.03
        return made

    def test_causal_latents_come_first(self, ranking: pd.DataFrame):
        """Breaks if a latent that was not steered is counted, or one without controls passes for a verdict."""
        summary = summarise(ranking)
        assert {name: summary[name] for name in ("steered", "causal", "without_controls")} == {
            "steered": 3,
            "causal": 1,
            "without_controls": 1,
        }
        assert [row["latent"] for row in summary["verdicts"]] == [5, 3, 7]
        json.dumps(summary, allow_nan=False)
        first, second, third = verdict_rows(summary)
        assert [row["causal"] for row in (first, second, third)] == ["yes", "no controls", "no"]
        assert (first["added to base"], first["worst control (added)"]) == ("+20.0% [+18.0%, +23.0%]", "+5.0%")
        assert (first["subtracted"], first["worst control (subtracted)"]) == ("+40.0% [+38.0%, +43.0%]", "+10.0%")
        assert (third["worst control (added)"], third["ablated"]) == ("", "+0.0% [-2.0%, +3.0%]")
        assert findings(summary)[0].startswith("1 of 3 latents are causal")

    def test_every_effect_is_drawn_at_its_rank(self, ranking: pd.DataFrame):
        """Breaks if a latent is missing, a causal one is not marked, or grey bars are not of its control."""
        with style():
            panels = effects(ranking).figure.axes
        for axes, name in zip(panels, ("induce", "repair", "ablate"), strict=True):
            looks = {}
            for line in axes.lines:
                if line.get_marker() in ("o", "D"):
                    looks |= {float(x): (line.get_marker(), float(y)) for x, y in np.asarray(line.get_xydata())}
            marks = {1: "o", 2: "D", 3: "o"}
            rows = ranking.set_index("rank")[f"causal_{name}"]
            assert looks == {rank: (shape, rows.loc[rank]) for rank, shape in marks.items()}
        bars = [[bar for bar in axes.patches if isinstance(bar, Rectangle)] for axes in panels]
        controls = [[(bar.get_center()[0], bar.get_height()) for bar in found] for found in bars]
        assert controls == [[(2, 0.05)], [(2, 0.1)], []]


class TestLatentSets:
    def test_sets_that_hold_the_cause_make_the_behaviour_and_random_ones_do_not(self, run: Path, tmp_path: Path):
        """Breaks if a set is steered with another set's vector, or if models or operations are mixed up."""
        options = Options(out=tmp_path / "out", wandb="disabled", quiet=True)
        result = conduct(LATENT_SETS, Inputs(run=run), SETS, options)
        table, summary = result.tables["dose_response"], read_json(tmp_path / "out" / "summary.json")
        arms = summary["arms"]
        assert arms["greedy 1"]["latents"] == [BAD]
        assert arms["greedy 1"]["cosine_direction"] == pytest.approx(1)
        assert arms["joint 2"]["latents"] == [LOUD, BAD]
        assert arms["joint 2"]["cosine_direction"] == pytest.approx(2 / 13**0.5)
        for name in ("greedy 1", f"{DIRECTION}, rebuilt", DIRECTION):
            assert arms[name]["base"]["harmful"] == arms[name]["corrupted"]["helpful"] == 1
        assert arms[f"latent {LOUD}"]["base"]["harmful"] == arms[f"latent {LOUD}"]["corrupted"]["helpful"] == 0
        assert summary["controls"] == {
            "base": {"highest harmful": 0, "mean harmful": 0},
            "corrupted": {"highest helpful": 0, "mean helpful": 0},
        }
        rates = {
            row["strength"]: row["harmful"]
            for row in table.to_dict("records")
            if (row["arm"], row["model"]) == ("greedy 1", "base")
        }
        assert rates == {0.5: 0, 1.5: 1, 3: 1}
        [section] = result.sections
        assert "greedy 1" in [row["arm"] for row in section.rows]
        assert len(pd.read_parquet(tmp_path / "out" / "dose_response.parquet")) == len(table)
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "Random sets" in page
        assert "greedy 1" in page
        assert "<script" not in page
        assert all((tmp_path / "out" / "figures" / f"dose-response.{form}").exists() for form in FORMATS)
