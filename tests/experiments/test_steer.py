"""`steer` and `latent-sets` on tiny models with a planted cause: a finished run in real files."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from planted_models import BAD, DIRECTION, HOOK, LOUD, WIDTH, write_model, write_run
from rich.console import Console

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
from experiments.latent_sets.config import LatentSetsConfig
from experiments.latent_sets.experiment import PAGE, SUMMARY, TABLE, measure_sets
from experiments.latent_sets.summary import print_latent_sets
from experiments.steer.experiment import RANKING, STEERING, print_verdicts, steer_run
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
    tokens = tokenize_prompts(load_prompts(run / "ranking.txt"), loaded.tokenizer)
    return LiveActivations(loaded, tokens, HarvestConfig(hooks=(HOOK,)))


def printed(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestSteer:
    def test_the_planted_latent_is_the_causal_one(self, run: Path, tmp_path: Path):
        """Breaks if the larger shift is blamed, a column is of another latent, or the run's own ranking is changed."""
        before = (run / "ranking" / "ranking.parquet").read_bytes()
        ranking, proof = steer_run(run, top=3, samples=2, out=tmp_path / "out", progress=False)
        rows = {row["latent"]: row for row in ranking.to_pandas().to_dict("records")}
        steered = {latent: row for latent, row in rows.items() if not pd.isna(row["causal"])}
        assert rows[LOUD]["rank"] == 1
        assert len(steered) == 3
        assert [latent for latent, row in steered.items() if row["causal"]] == [BAD]
        for name in ("causal_induce", "causal_repair", "causal_ablate"):
            assert (rows[BAD][name], rows[LOUD][name]) == (1, 0)
        assert (run / "ranking" / "ranking.parquet").read_bytes() == before
        pd.testing.assert_frame_equal(FeatureRanking.load(tmp_path / "out" / RANKING).table, ranking.table)
        assert len(pd.read_parquet(tmp_path / "out" / STEERING)) == len(proof.table)
        assert "1 of 3 latents are causal" in printed(lambda console: print_verdicts(ranking, console))

    def test_given_answers_stand_in_for_a_judge(self, run: Path, tmp_path: Path):
        """Breaks if a contrast is sampled, or if its shares do not reach the verdict: nothing judges answers here."""
        copied = shutil.copytree(run, tmp_path / "run")
        ids = [prompt.id for half in ("selection", "reporting") for prompt in load_prompts(run / f"{half}.txt")]
        rows = [json.dumps({"id": name, "harmful": " bad", "helpful": " good"}) for name in ids]
        (tmp_path / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
        made = read_json(copied / "run.json")
        made["config"]["judge"] = {"kind": "contrast", "file": str(tmp_path / "pairs.jsonl")}
        write_json(copied / "run.json", made)
        ranking, _ = steer_run(copied, top=3, samples=2, out=tmp_path / "out", progress=False)
        causal = [row["latent"] for row in ranking.table.to_dict("records") if row["causal"] is True]
        assert causal == [BAD]
        kept = (tmp_path / "out" / "transcripts" / "base_selection.jsonl").read_text().splitlines()
        assert {"log_probs", "untouched"} <= set(json.loads(kept[0]))
        assert "answers" not in json.loads(kept[0])

    def test_killed_and_run_again_samples_only_what_is_missing(self, run: Path, tmp_path: Path):
        ranking, _ = steer_run(run, top=2, samples=2, out=tmp_path / "out", progress=False)
        transcripts = tmp_path / "out" / "transcripts" / "base_selection.jsonl"
        whole = transcripts.read_text()
        transcripts.write_text(whole[: len(whole) // 2])
        (tmp_path / "out" / "config.json").unlink()
        again, _ = steer_run(run, top=2, samples=2, out=tmp_path / "out", progress=False)
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
            steer_run(still, top=2, samples=2, out=tmp_path / "out", progress=False)


class TestLatentSets:
    def test_sets_that_hold_the_cause_make_the_behaviour_and_random_ones_do_not(self, run: Path, tmp_path: Path):
        """Breaks if a set is steered with another set's vector, or if models or operations are mixed up."""
        table, summary = measure_sets(run, SETS, tmp_path / "out", progress=False)
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
        assert "greedy 1" in printed(lambda console: print_latent_sets(summary, console))
        assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == json.loads(json.dumps(summary))
        assert len(pd.read_parquet(tmp_path / "out" / TABLE)) == len(table)
        page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
        assert "Random sets" in page
        assert "greedy 1" in page
        assert "<script" not in page
        assert all((tmp_path / "out" / "figures" / f"dose-response.{form}").exists() for form in ("svg", "pdf", "png"))
