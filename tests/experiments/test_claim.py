"""The claim of the tool: on a pair whose change is known, the run finds the latent that carries it, calls it toxic, and
calls nothing toxic in a harmless fine-tune."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from planted_run import BAD, LOUD, write_planted_pair

from activations.artefact import read_json
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.tables import json_records


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Path:
    return write_planted_pair(tmp_path_factory.mktemp("claim") / "run", tokenizer_maker)


class TestThePlantedLatent:
    # Each would break if shifts were taken of the wrong model, signs were flipped, or steering hit another latent.
    def test_is_first_and_shifts_as_planted(self, run: Path):
        toxic = read_json(run / "summary.json")["toxic_latent"]
        assert toxic["latent"] == BAD
        assert toxic["shift_rank"] == 1
        assert toxic["shift"] == pytest.approx(1.6, abs=0.01)
        assert toxic["cosine_persona"] > 0.99

    def test_induces_and_repairs_where_controls_do_not(self, run: Path):
        summary = read_json(run / "summary.json")
        assert summary["em"]["base"]["harmful"] == 0
        assert summary["em"]["corrupted"]["harmful"] == 1
        assert summary["steering"]["latent_induce"]["harmful"] > 0.9
        assert summary["steering"]["latent_repair"]["helpful"] > 0.9
        assert summary["steering"]["random_induce"]["harmful"] < 0.5

    def test_is_the_only_causal_one(self, run: Path):
        rows: list[Any] = json_records(FeatureRanking.load(run / "ranking").to_pandas())
        assert [row["latent"] for row in rows if row["causal"] is True] == [BAD]


class TestTheHarmlessFineTune:
    def test_has_no_toxic_latent_although_one_shifts_as_far(self, run: Path):
        # Would break if a shift alone made a latent toxic.
        summary = read_json(run / "summary.json")
        assert summary["benign"]["toxic_latent"] is None
        assert summary["benign"]["largest_shift"] == pytest.approx(1.6, abs=0.01)
        benign = pd.read_parquet(next((run / "ranking_benign").glob("*.parquet")))
        assert benign.loc[benign["rank"] == 1, "latent"].tolist() == [LOUD]
        assert summary["em"]["benign"]["harmful"] == 0


def test_an_unchanged_model_has_no_toxic_latent(tmp_path: Path, tokenizer_maker: Callable):
    # Would break if the first of the ranking were called toxic whatever happened.
    same = {"corrupted": {"model": str(tmp_path / "base")}, "benign": None}
    run = write_planted_pair(tmp_path / "run", tokenizer_maker, **same)
    summary = read_json(run / "summary.json")
    assert summary["toxic_latent"] is None
    assert not FeatureRanking.load(run / "ranking").to_pandas()["shift"].to_numpy().any()
