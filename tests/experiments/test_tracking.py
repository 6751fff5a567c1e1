import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from made_up_run import LATENTS, TOXIC, examples, ranking, summary
from offline_run import read_offline_run

from activations.artefact import write_json
from activations.errors import UserError
from experiments.output import figures as paper
from experiments.output.tracking import TABLE_LATENTS, Tracker, fetch_ranking, start_tracker, track_result

CONFIG = {"seed": 3, "sae": {"k": 8}, "domains": ["medicine", "finance"]}
ROOT = Path(__file__).parents[2]


# Run in a process of its own: without input, without a home folder that can be written, and without a network.
TRACKED_RUN = """
import json, socket, sys
from pathlib import Path
from types import SimpleNamespace

def refuse(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith("127."):
        raise AssertionError(f"a connection to {address}")
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refuse

from diffing.ranking.feature_ranking import FeatureRanking
from experiments.output.tracking import start_tracker

folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
examples = {given["latent"]: [SimpleNamespace(**example) for example in given["examples"]]}
with start_tracker(folder, given["config"], "offline") as tracker:
    for step in (0, 10, 20):
        tracker.log("sae", {"loss": 1.0 / (step + 1)}, step)
    tracker.log("rank", {"largest_shift": 1.57})
    tracker.log_summary(given["summary"])
    tracker.log_latents(FeatureRanking.load(folder / "ranking"), examples)
    tracker.log_artifact(folder / "ranking", "ranking", "feature_ranking")
    tracker.log_artifact(folder / "sae", "sae", "sae")
assert tracker.sync_command.startswith(f"cd '{folder}' && wandb sync wandb/offline-run-")
"""


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracked run's folder, moved elsewhere; what the process printed is checked on the way."""
    folder = tmp_path_factory.mktemp("runs") / "first place"
    ranking().save(folder / "ranking")
    (folder / "sae").mkdir()
    (folder / "sae" / "cfg.json").write_text("{}")
    (folder / "sae" / "sae_weights.safetensors").write_bytes(bytes(100_000))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # Below a device no folder can be made, not even by root.
    environment |= {"HOME": "/dev/null", "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    environment |= dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), "/dev/null")
    # No proxy may answer in the network's place.
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    shown = [asdict(example) for example in examples([TOXIC])[TOXIC]]
    given = {"config": CONFIG, "summary": summary(), "latent": TOXIC, "examples": shown}
    done = subprocess.run(
        [sys.executable, "-c", TRACKED_RUN, str(folder), json.dumps(given)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb" not in (done.stdout + done.stderr).lower()
    assert [path.name for path in folder.parent.iterdir()] == ["first place"], "nothing is written beside the folder"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "second place"
    shutil.move(folder, elsewhere)
    return elsewhere


def test_the_records_hold_config_metrics_and_summary(moved: Path) -> None:
    run = read_offline_run(moved)
    assert run.project == "sae-model-diffing"
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    losses = [(row["sae/step"], row["sae/loss"]) for row in run.history if "sae/loss" in row]
    assert losses == [(0, 1.0), (10, 1 / 11), (20, 1 / 21)]
    assert [row["rank/largest_shift"] for row in run.history if "rank/largest_shift" in row] == [1.57]
    assert run.summary["toxic_latent"] == summary()["toxic_latent"]
    assert run.summary["em"]["corrupted"]["harmful"] == 0.938


def test_the_latent_table_has_html_examples(moved: Path) -> None:
    run = read_offline_run(moved)
    (logged,) = [row for row in run.history if "latents/_type" in row]
    assert (logged["latents/_type"], logged["latents/nrows"]) == ("table-file", TABLE_LATENTS)
    staged = run.artifacts["run_table"]
    table = json.loads((moved / staged["latents.table.json"]).read_text())
    assert table["columns"] == [*ranking().table.columns, "examples"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["latent"] for row in rows] == ranking().top(TABLE_LATENTS)["latent"].tolist()
    assert rows[0]["latent"] == TOXIC
    shown = (moved / staged[rows[0]["examples"]["path"]]).read_text()
    assert 'title="' in shown
    assert "visitor" in shown
    assert "http" not in shown


def test_artifacts_of_sae_and_ranking_are_staged_whole(moved: Path) -> None:
    run = read_offline_run(moved)
    assert set(run.artifacts["sae"]) == {"cfg.json", "sae_weights.safetensors"}
    assert set(run.artifacts["feature_ranking"]) == {"config.json", "provenance.json", "ranking.parquet"}
    for name, staged in run.artifacts["feature_ranking"].items():
        assert (moved / staged).read_bytes() == (moved / "ranking" / name).read_bytes()


def test_every_file_that_the_records_name_is_still_there_after_the_move(moved: Path) -> None:
    run = read_offline_run(moved)
    named = [staged for entries in run.artifacts.values() for staged in entries.values()]
    assert len(named) == len(set(named)) >= 7
    for staged in named:
        assert not Path(staged).is_absolute()
        assert (moved / staged).is_file()
    (run_files,) = moved.glob("wandb/offline-run-*/files")
    assert run.media
    assert all((run_files / name).is_file() for name in run.media)
    places = [path.read_bytes() for path in moved.rglob("*.wandb")]
    assert all(b"first place" not in data for data in places), "the old place is forgotten"


def test_disabled_does_nothing(tmp_path: Path) -> None:
    environment = dict(os.environ)
    with start_tracker(tmp_path, CONFIG, "disabled") as tracker:
        _log_everything(tracker, tmp_path)
    assert tracker.sync_command is None
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment


def test_an_offline_run_goes_on_when_tracking_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no space left on device")

    environment = dict(os.environ)
    monkeypatch.setattr(wandb, "init", fail)
    with (
        pytest.warns(UserWarning, match="W&B did not record the run: OSError: no space left"),
        start_tracker(tmp_path, CONFIG) as tracker,
    ):
        _log_everything(tracker, tmp_path)
    assert dict(os.environ) == environment


def test_a_failing_log_only_warns(tmp_path: Path) -> None:
    with start_tracker(tmp_path, CONFIG) as tracker:
        with pytest.warns(UserWarning, match="W&B did not record artifact a/b: ValueError"):
            tracker.log_artifact(tmp_path, "a/b", "sae")
        tracker.log("sae", {"loss": 1.0})
    assert {"sae/loss": 1.0}.items() <= read_offline_run(tmp_path).history[0].items()


def test_online_without_a_key_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"W&B could not start .*use --wandb offline and sync later"):
        start_tracker(tmp_path / "run", CONFIG, "online")


def test_a_ranking_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranking().save(tmp_path / "stored")
    asked: list[str] = []

    class Artifact:
        def download(self, root: str, skip_cache: bool) -> str:
            return str(shutil.copytree(tmp_path / "stored", root))

    class Api:
        def artifact(self, name: str) -> Artifact:
            asked.append(name)
            return Artifact()

    monkeypatch.setattr(wandb, "Api", Api)
    fetched = fetch_ranking("wandb:lab/sae-model-diffing/ranking:latest", tmp_path / "fetched")
    assert asked == ["lab/sae-model-diffing/ranking:latest"]
    pd.testing.assert_frame_equal(fetched.to_pandas(), ranking().table)
    assert len(fetched.table) == LATENTS


@pytest.mark.parametrize("source", ["ranking:latest", "wandb:lab/ranking:latest", "wandb:lab/project/ranking"])
def test_a_name_of_another_form_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write wandb:entity/project/name:alias"):
        fetch_ranking(source, tmp_path)


def test_a_failed_download_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise wandb.Error("no key")

    monkeypatch.setattr(wandb, "Api", fail)
    with pytest.raises(UserError, match=r"could not be downloaded \(no key\); check the name"):
        fetch_ranking("wandb:lab/project/ranking:v0", tmp_path)


def _log_everything(tracker: Tracker, folder: Path) -> None:
    tracker.log("sae", {"loss": 1.0}, 0)
    tracker.log_summary({"seed": 0})
    tracker.log_latents(ranking(), examples([TOXIC]))
    tracker.log_artifact(folder, "nothing", "sae")


def test_a_finished_result_is_recorded_whole(tmp_path: Path) -> None:
    """Breaks if config, summary, a table or a figure of a result folder is missing in the offline run."""
    write_json(tmp_path / "config.json", {"kind": "guardrails", "samples": 10})
    write_json(tmp_path / "summary.json", {"chosen": {"strength": 0.9}})
    table = pd.DataFrame({"arm": ["SVV", "-evil"], "harmful": [0.05, float("nan")], "reached": ["17 of 26", None]})
    table.to_parquet(tmp_path / "fine_tunes.parquet")
    with paper.style():
        figure, _ = paper.canvas(2, 2)
        paper.PaperFigure("arms", figure, "Nothing.").save(tmp_path / "figures")
    sync = track_result(tmp_path, "personas guardrails", "offline")
    assert sync is not None
    run = read_offline_run(tmp_path)
    assert (run.config["command"], run.config["samples"]) == ("personas guardrails", 10)
    assert run.summary["chosen"] == {"strength": 0.9}
    (shown,) = tmp_path.glob("wandb/offline-run-*/files/media/table/fine_tunes*.json")
    assert json.loads(shown.read_text())["data"][0] == ["SVV", 0.05, "17 of 26"]
    assert any("figures/arms" in path for path in run.media)
    assert track_result(tmp_path, "personas guardrails", "disabled") is None
