"""Adding an experiment takes one folder: a toy in another package gets command, help, resume, tables, page, figure and
W&B run from the frame."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from offline_run import read_offline_run
from planted_run import write_planted_pair

from activations.artefact import read_json

TOY = Path(__file__).with_name("toy_experiment.py")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy as an installed package: its file, and the entry point that names it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(TOY, folder / "toy_experiment.py")
    info = folder / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sae_diff.experiments]\ntoy = toy_experiment:EXPERIMENT\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer_maker: Callable) -> Path:
    return write_planted_pair(tmp_path_factory.mktemp("toy") / "run", tokenizer_maker)


def sae_diff(installed: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{REPOSITORY}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "experiments.cli", *options]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_the_toy_is_small():
    # Would break if the frame asked an experiment for more than its science.
    assert len(TOY.read_text().splitlines()) <= 60


def test_help_comes_from_question_and_config(installed: Path):
    listed, help_text = sae_diff(installed, "--help"), sae_diff(installed, "toy", "--help")
    assert "How harmful are base and corrupted model?" in listed.stdout
    for words in ("Answers to each question.", "--samples", "--device", "--dtype", "--seed", "--out", "--overwrite"):
        assert words in help_text.stdout, words
    assert "--models" not in help_text.stdout  # the toy needs no fine-tunes


def test_a_value_out_of_range_is_one_sentence(installed: Path, run: Path):
    done = sae_diff(installed, "toy", "--run", str(run), "--samples", "0")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("sae-diff: Option --samples:")
    assert len(done.stderr.strip().splitlines()) == 1


def test_everything_is_written_and_reused(installed: Path, run: Path, tmp_path: Path):
    out = tmp_path / "toy"
    done = sae_diff(installed, "toy", "--run", str(run), "--out", str(out), "--quiet")
    assert done.returncode == 0, done.stderr
    assert "The corrupted model is" in done.stdout
    table = pd.read_parquet(out / "rates.parquet")
    assert table["model"].tolist() == ["base", "corrupted"]
    summary = read_json(out / "summary.json")
    assert summary["more_harmful"] == pytest.approx(table["harmful"].iloc[1] - table["harmful"].iloc[0])
    page = (out / "report.html").read_text()
    assert "How harmful are base and corrupted model?" in page
    assert "Untouched models" in page
    assert {path.name for path in (out / "figures").iterdir()} == {"rates.svg", "rates.pdf", "rates.png"}
    tracked = read_offline_run(out)
    assert tracked.summary["more_harmful"] == pytest.approx(summary["more_harmful"])
    assert tracked.config["command"] == "toy"
    answers = {path: path.stat().st_mtime_ns for path in (out / "transcripts").rglob("*.jsonl")}
    assert len(answers) == 2
    # A call that was killed after its answers were sampled: no `config.json` yet. Nothing is sampled again.
    (out / "config.json").unlink()
    again = sae_diff(installed, "toy", "--run", str(run), "--out", str(out), "--quiet", "--wandb", "disabled")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in answers} == answers
    assert (out / "config.json").exists()


def test_other_settings_need_another_folder(installed: Path, run: Path, tmp_path: Path):
    out = tmp_path / "toy"
    options = ("toy", "--run", str(run), "--out", str(out), "--quiet", "--wandb", "disabled")
    assert sae_diff(installed, *options).returncode == 0
    other = sae_diff(installed, *options, "--samples", "3")
    assert other.returncode == 2
    assert "samples" in other.stderr
    assert "--overwrite" in other.stderr
    assert sae_diff(installed, *options, "--samples", "3", "--overwrite").returncode == 0


def test_a_run_that_was_moved_is_the_same_run(installed: Path, run: Path, tmp_path: Path):
    moved, out = tmp_path / "elsewhere" / "run", tmp_path / "toy"
    shutil.copytree(run, moved)
    for folder in (run, moved):
        done = sae_diff(installed, "toy", "--run", str(folder), "--out", str(out), "--quiet", "--wandb", "disabled")
        assert done.returncode == 0, done.stderr


def test_what_a_run_lacks_is_named(installed: Path, run: Path, tmp_path: Path):
    nothing = sae_diff(installed, "toy", "--run", str(tmp_path / "nothing"))
    assert nothing.returncode == 2
    assert "holds no finished run" in nothing.stderr
    assert not (tmp_path / "nothing-toy").exists()  # a refused call leaves no folder
    lacking = sae_diff(installed, "guardrails", "--run", str(run))
    assert lacking.returncode == 2
    assert "sae-diff fine-tunes" in lacking.stderr or "sae-diff trait-directions" in lacking.stderr
