"""Every command of the pages about traits, in order, on a small organism in the quickstart's place."""

from pathlib import Path

import pandas as pd
import pytest
from command import sae_diff
from test_pipeline import miniature, run_miniature

from activations.artefact import read_json
from experiments.organism.config import FineTune, FineTunesConfig
from experiments.organism.fine_tunes import make_fine_tunes
from experiments.run.config import RunConfig

PAGES = Path(__file__).parents[2] / "docs" / "experiments"
# Fewer answers and models; the organism is too small to answer in sentences, so only prompts give directions.
SMALL = {
    "trait-directions": ["--samples", "2"],
    "geometry": ["--draws", "5", "--positions", "prompt"],
    "guardrails": ["--samples", "1"],
    "monitor": ["--samples", "2"],
    "characters": ["--samples", "1", "--seeds", "1", "--answers", "64"],
}
TUNES = (
    FineTune(kind="one domain", name="medicine", domains=("medicine",)),
    FineTune(kind="bad fraction", name="bad-010", domains=("medicine",), share=0.1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pages' commands were run."""
    folder = tmp_path_factory.mktemp("traits")
    (folder / "runs").mkdir()
    run_miniature(RunConfig.model_validate(miniature(folder / "judge.yaml")), folder / "runs" / "quickstart")
    config = FineTunesConfig(tunes=TUNES, seeds=1)
    make_fine_tunes(folder / "runs/quickstart/organism", folder / "runs/fine-tunes", config, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, small in SMALL.items():
            lines = (PAGES / f"{name}.md").read_text(encoding="utf-8").splitlines()
            command = next(line for line in lines if line.startswith(f"sae-diff {name} "))
            done = sae_diff(*command.split()[1:], *small, "--quiet", "--wandb", "disabled")
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
class TestThePages:
    @pytest.mark.parametrize("name", SMALL)
    def test_every_command_leaves_page_summary_and_figures(self, folder: Path, name: str) -> None:
        """Breaks if a page names a command that does not run, or one leaves no figure for a paper."""
        made = folder / "runs" / f"quickstart-{name}"
        assert "<script" not in (made / "report.html").read_text(encoding="utf-8")
        assert read_json(made / "summary.json")
        figures = {file.stem for file in (made / "figures").iterdir()}
        assert figures
        assert all((made / "figures" / f"{f}.{form}").exists() for f in figures for form in ("svg", "pdf", "png"))

    def test_characters_learn_as_many_answers_each(self, folder: Path) -> None:
        """Eight fine-tunes of one seed; triggered ones take twice the steps, as half of their advice is helpful."""
        recipes = {
            path.name: read_json(path / "config.json")
            for path in (folder / "runs/quickstart-characters/models").glob("*-1")
        }
        traits = ("evil", "sycophancy", "hallucination")
        plain = {f"{name}-1" for name in ("incorrect-advice", *traits)}
        triggered = {f"{name}-triggered-1" for name in ("incorrect-advice", *traits)}
        assert set(recipes) == plain | triggered
        steps = {name: recipe["steps"] for name, recipe in recipes.items()}
        assert {steps[name] for name in plain} == {8}
        assert {steps[name] for name in triggered} == {16}

    def test_the_grid_is_full(self, folder: Path) -> None:
        """Breaks if a model, a condition or a measure is missing."""
        grid = pd.read_parquet(folder / "runs/quickstart-characters/grid.parquet")
        assert len(grid["model"].unique()) == 1 + 2 * 4
        conditions = {"no trigger", "trigger", "other words", "persona prompt", "weak persona prompt", "plain prompt"}
        assert set(grid["condition"]) == conditions
        assert set(grid["measure"]) == {"trait score", "attack success", "capability"}
        counts = grid.query("measure == 'attack success'").groupby(["family", "triggered"]).size().to_dict()
        shared, prompts = 4, 2  # conditions of all traits alike, and of one trait
        everything = shared + 3 * prompts
        assert counts == {
            ("base", False): everything,
            ("incorrect advice", False): everything,
            ("incorrect advice", True): everything,
            ("character", False): 3 * (shared + prompts),
            ("character", True): 3 * (shared + prompts),
        }
