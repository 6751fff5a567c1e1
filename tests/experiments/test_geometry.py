"""The personality space of tiny real models whose traits' directions are planted."""

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
from command import sae_diff
from planted_models import HOOK
from planted_traits import EVIL, TRAITS, TraitRun, write_trait_runs
from planted_traits import SMALL as EXTRACT

from activations.artefact import read_json
from activations.errors import UserError
from diffing.tables import where_equal
from experiments.frame.conduct import conduct
from experiments.frame.experiment import Result
from experiments.frame.inputs import Inputs, Options
from experiments.geometry.config import GeometryConfig
from experiments.geometry.experiment import EXPERIMENT
from experiments.model_set import ModelSet

PAGES = Path(__file__).parents[2] / "docs" / "experiments"
SMALL = GeometryConfig(permutations=50, replicates=20, draws=20, latents=2)


@dataclass(frozen=True)
class Made:
    """Where everything is, and what was compared."""

    given: TraitRun
    result: Result

    @property
    def out(self) -> Path:
        return self.result.lab.out.folder


def compare(given: TraitRun, config: GeometryConfig = SMALL, out: Path | None = None) -> Result:
    return conduct(EXPERIMENT, Inputs(run=given.run), config, Options(out=out, quiet=True, wandb="disabled"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Made:
    given = write_trait_runs(tmp_path_factory.mktemp("geometry"), tokenizer_maker)
    given.extract()
    return Made(given, compare(given))


def stability(made: Made, model: str, positions: str, hook: str) -> dict[str, Any]:
    rows = pd.read_parquet(made.out / "stability.parquet").to_dict("records")
    return next(row for row in rows if (row["model"], row["positions"], row["hook"]) == (model, positions, hook))


class TestGeometry:
    def test_a_rotated_space_is_the_same_space(self, made: Made) -> None:
        """RSA and CKA see the same geometry in the rotated model; plain cosines see that it has turned."""
        turned, other = (stability(made, name, "prompt", HOOK) for name in ("corrupted", "stranger"))
        assert turned["rsa"] > 0.95 > other["rsa"]
        assert turned["cka_unbiased"] > 0.95 > other["cka_unbiased"]
        assert turned["cosine"] < 0.7 < 0.99 < turned["aligned_cosine"]

    def test_nulls_stand_beside_every_measure(self, made: Made) -> None:
        table = pd.read_parquet(made.out / "nulls.parquet")
        assert set(table["null"]) == {"isotropic", "covariance", "shuffled", "other layer"}
        place = {"model": "corrupted", "positions": "prompt", "null": "isotropic"}
        rows: list[Any] = where_equal(table, **place).to_dict("records")
        isotropic = {row["measure"]: row for row in rows}
        assert abs(isotropic["cka_unbiased"]["null_mean"]) < 0.4
        assert isotropic["aligned_cosine"]["p"] == pytest.approx(1 / (1 + SMALL.draws))

    def test_the_toxic_latent_belongs_to_evil(self, made: Made) -> None:
        """Breaks if the latent is not the run's, or cosines are taken at another hook."""
        for reading in ("prompt", "last_prompt", "answer"):
            found = made.result.summary["toxic_latent"][reading]
            assert (found["latent"], found["belongs_to"], found["largest"]) == (EVIL, "evil", "evil")
            assert found["cosines"]["evil"]["cosine"] > 0.95
            assert found["cosines"]["evil"]["rank"] == 1
            assert found["cosines"]["evil"]["low"] <= found["cosines"]["evil"]["cosine"] + 1e-6
        assert found["cosines"]["SVV"]["cosine"] < 0
        table = pd.read_parquet(made.out / "toxic.parquet")
        space = made.result.lab.trait_directions.base
        for row in where_equal(table, positions="prompt").to_dict("records")[: len(TRAITS)]:
            at_the_sae = space.directions("prompt", HOOK).unit(row["target"])[EVIL]
            assert row["cosine"] == pytest.approx(float(at_the_sae), abs=1e-6)

    def test_latents_of_a_trait(self, made: Made) -> None:
        """Latents are axes, so evil is one of them and leaves nothing over."""
        table = pd.read_parquet(made.out / "latents.parquet")
        first = table[(table["trait"] == "evil") & (table["place"] == 1)].iloc[0]
        assert first["latent"] == EVIL
        assert first["unexplained"] < 0.1 < first["null_low"]

    def test_every_cosine_has_an_interval(self, made: Made) -> None:
        """Breaks if intervals belong to another trait, axis or model; noise of the planted questions is small."""
        folder, svv = made.out, made.result.summary["valence"]
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
        rows = [row for row in made.result.summary["shift"] if row["model"] == "corrupted" and row["hook"] == HOOK]
        assert {row["null"] for row in rows} == {"isotropic", "covariance"}
        assert all(row["share"] > 0.9 and row["dimensions"] == len(TRAITS) for row in rows)
        assert rows[0]["null_high"] < 0.8

    def test_page_and_summary(self, made: Made) -> None:
        """The page needs no network and has every figure; the summary is what was returned."""
        page = (made.out / "report.html").read_text(encoding="utf-8")
        names = ("cosines", "trees", "map", "valence", "pairs", "layers", "models", "toxic", "shift")
        figures = made.out / "figures"
        assert all(f'<figure id="{name}">' in page and (figures / f"{name}.pdf").exists() for name in names)
        assert "<script" not in page
        assert 'src="http' not in page
        assert read_json(made.out / "summary.json") == json.loads(json.dumps(made.result.summary))
        assert any("it belongs to evil" in sentence for sentence in made.result.sentences)
        against_base, _, shifts = made.result.sections
        assert {row["model"] for row in against_base.rows} == {"corrupted", "stranger"}
        assert len(shifts.rows) == len(made.result.tables["shift"])

    def test_no_generator_where_the_world_is_not_known(self, made: Made) -> None:
        assert made.result.summary["generator"] == []


class TestRefusals:
    """Breaks if input that does not fit gives a traceback, or numbers."""

    def test_positions_that_were_not_extracted(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No directions at prompt_end"):
            compare(made.given, SMALL.model_copy(update={"positions": "prompt_end"}), tmp_path / "out")

    def test_a_hook_that_was_not_extracted(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"No directions at blocks\.9"):
            compare(made.given, SMALL.model_copy(update={"hook": "blocks.9.hook_resid_post"}), tmp_path / "out")

    def test_a_finished_geometry_is_repeated_but_not_replaced_by_another(self, made: Made) -> None:
        """Breaks if a second call fails or tells other numbers, or if another config takes the folder."""
        again = compare(made.given).summary
        assert {**again, "wall_seconds": 0} == {**made.result.summary, "wall_seconds": 0}
        with pytest.raises(UserError, match="holds a run with another draws"):
            compare(made.given, SMALL.model_copy(update={"draws": 7}))


class TestDocs:
    def test_the_pages_run(self, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Commands and code of two pages, on the planted run in place of the quickstart's.

        All commands run on a small organism in `test_traits_on_organism.py`.
        """
        quickstart = tmp_path / "runs" / "quickstart"
        shutil.copytree(made.given.run, quickstart)
        shutil.copytree(made.given.space, quickstart.with_name("quickstart-trait-directions"))
        fine_tunes = ModelSet.load(made.given.models)
        (tmp_path / "runs" / "fine-tunes").mkdir()
        fine_tunes.save(tmp_path / "runs" / "fine-tunes" / "models.yaml")
        shutil.copy(made.given.traits[0], tmp_path / "traits.yaml")
        monkeypatch.chdir(tmp_path)
        small = {"trait-directions": ["--traits", "traits.yaml", "--samples", "2"], "geometry": ["--draws", "5"]}
        small["trait-directions"] += ["--splits", "10", "--rows", "40"]
        small["trait-directions"] += [word for at in EXTRACT.positions for word in ("--positions", at)]
        for name, options in small.items():
            text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
            command = next(line for line in text.splitlines() if line.startswith(f"sae-diff {name} "))
            done = sae_diff(*command.split()[1:], *options, "--quiet", "--wandb", "disabled")
            assert done.returncode == 0, done.stderr
            for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
                exec(compile(block, name, "exec"), {})
