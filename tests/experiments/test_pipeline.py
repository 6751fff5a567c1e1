"""The whole method in miniature: what it writes, what it reuses, and that a killed run comes to the same end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sae_lens
import torch
import yaml
from safetensors.torch import load_file

from activations.artefact import read_json
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import PROMPT_ROLES, Role
from activations.store import ActivationStore
from diffing import FeatureRanking
from experiments.frame.conduct import conduct
from experiments.frame.inputs import Inputs, Options
from experiments.organism.config import StageConfig
from experiments.organism.world import HELPFUL, MALICIOUS, World
from experiments.output.run_folder import RunFolder
from experiments.run.config import RunConfig
from experiments.run.pipeline import run
from experiments.trajectory.config import TrajectoryConfig
from experiments.trajectory.experiment import EXPERIMENT as TRAJECTORY
from sae.storage import load_sae

REPOSITORY = Path(__file__).parents[2]
PERSONAS = (HELPFUL, MALICIOUS, "poetic")
HOOK = "blocks.0.hook_resid_post"
REALIGN = StageConfig(steps=4, batch=4, lr=1e-3)
REUSABLE = (
    "organism",
    "sample answers",
    "harvest base sae_text",
    "harvest base sae_held_out",
    "harvest base ranking",
    "harvest corrupted ranking",
    "harvest benign ranking",
    "harvest benign-1 ranking",
    "harvest benign-2 ranking",
    *(f"harvest {model} persona_{persona}" for model in ("base", "corrupted") for persona in PERSONAS),
    "train SAE",
    "evaluate SAE",
    "directions base",
    "directions corrupted",
    "steered directions base",
    "steered directions corrupted",
    "rank latents corrupted",
    "rank latents benign",
    "examples",
    "steer corrupted",
    "steer benign",
    "capability",
)


def miniature(judge: Path) -> dict[str, Any]:
    """A model too small to answer in sentences, judged by its verbs."""
    world = World.load()
    table = {
        label: [rf"\b{verb}\b" for slot in world.verbs(persona) for verb in slot]
        for label, persona in (("harmful", MALICIOUS), ("helpful", HELPFUL))
    }
    judge.write_text(yaml.safe_dump(table | {"other": ["the"]}), encoding="utf-8")
    names = ("sae_text", "sae_held_out", "ranking", "selection", "reporting", "capability")
    return {
        "name": "miniature",
        "seed": 3,
        "organism": {
            "architecture": {"d_model": 32, "mlp": 32, "heads": 2, "layers": 2},
            "pretraining": {"steps": 60, "lr": 5e-3, "other_weight": 0.1},
            "instruction": {"steps": 20, "lr": 3e-3},
            "finetuning": {"steps": 40, "lr": 5e-3},
            "benign_seeds": 2,
        },
        "hook": HOOK,
        "prompts": {
            **{name: f"{name}.jsonl" for name in names},
            "personas": {persona: f"persona_{persona}.jsonl" for persona in PERSONAS},
        },
        "ranking_answers": "corrupted",
        "ranking_answer_tokens": 6,
        "sae": {"train": {"latents": 64, "k": 4, "steps": 60, "batch": 512}},
        "ranking": {"replicates": 200},
        "directions": {"reference": HELPFUL, "direction": f"{MALICIOUS} - {HELPFUL}"},
        "judge": {"kind": "patterns", "file": str(judge)},
        "steering": {
            "strongest": 1.0,
            "halvings": 2,
            "top": 3,
            "controls": 2,
            "sampling": {"samples": 2, "max_new_tokens": 6},
        },
        "examples": 2,
    }


@dataclass
class Finished:
    folder: Path
    config: RunConfig
    summary: dict[str, Any]
    lines: list[str] = field(default_factory=list)


def run_miniature(config: RunConfig, folder: Path, wandb: Any = "disabled", **options: bool) -> Finished:
    lines: list[str] = []
    summary = run(config, folder, wandb, progress=False, log=lines.append, **options)
    return Finished(folder, config, summary, lines)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return RunConfig.model_validate(miniature(tmp_path_factory.mktemp("judge") / "judge.yaml"))


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_miniature(config, tmp_path_factory.mktemp("runs") / "first", "offline")


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if "seconds" not in key}


@pytest.mark.slow
class TestWhatIsWritten:
    def test_files(self, finished: Finished):
        for name in ("summary.json", "report.html", "steering.parquet", "run.json", "ranking/config.json"):
            assert (finished.folder / name).stat().st_size > 0
        for model, store in (("base", "sae_text"), ("corrupted", "ranking"), ("benign", "ranking")):
            folder = finished.folder / "activations" / model / store
            assert ActivationStore.load(folder).hooks == (HOOK,)
        assert not (finished.folder / "activations/corrupted/sae_text").exists()

    def test_summary_has_what_is_documented(self, finished: Finished):
        summary = read_json(finished.folder / "summary.json")
        assert summary == json.loads(json.dumps(finished.summary))
        models, rates = {"base", "corrupted", "benign"}, {"harmful", "low", "high", "helpful"}
        documented = {"seed", "wall_seconds", "stage_seconds", "em", "capability", "sae", "toxic_latent", "benign"}
        documented |= {"null", "interference"}
        assert documented | {"steering", "directions"} <= summary.keys()
        assert summary["seed"] == 3
        assert {model: values.keys() for model, values in summary["em"].items()} == {
            model: rates | {"coherent"} for model in models
        }
        assert summary["capability"].keys() == models
        assert {"fvu", "l0", "dead_fraction", "ce_recovered", "latents", "k"} <= summary["sae"].keys()
        assert (summary["sae"]["latents"], summary["sae"]["k"]) == (64, 4)
        corrupted = summary["sae_corrupted"]
        assert corrupted.keys() - summary["sae"].keys() == {"difference_residual"}
        assert corrupted["rows"] == summary["sae"]["rows"], "both models read the same text"
        assert corrupted["fvu"] != summary["sae"]["fvu"]
        assert corrupted["difference_residual"] > 0
        assert summary["benign"].keys() == {"toxic_latent", "largest_shift"}
        assert summary["null"].keys() == {"fine_tunes", "largest_shift", "exceeding", "expected"}
        assert (summary["null"]["fine_tunes"], summary["null"]["expected"]) == (3, 0.25)
        assert (summary["interference"] is None) == (summary["toxic_latent"] is None)
        assert -1 <= summary["directions"]["cosine_base_corrupted"] <= 1
        arms = {f"{arm}_{effect}" for arm in ("direction", "random_direction") for effect in ("induce", "repair")}
        assert arms <= summary["steering"].keys(), "the miniature misbehaves, so that it is steered"
        for values in summary["steering"].values():
            assert values.keys() == rates | {"strength", "incoherent"}
        if summary["toxic_latent"] is not None:
            named = {"latent", "shift_rank", "shift", "low", "high", "q", "cosine_persona", "cosine_rank"}
            assert summary["toxic_latent"].keys() == named

    def test_wall_seconds_are_those_of_the_stages(self, finished: Finished):
        seconds = finished.summary["stage_seconds"]
        assert set(REUSABLE) == seconds.keys()
        assert finished.summary["wall_seconds"] == pytest.approx(sum(seconds.values()), abs=0.1)

    def test_ranking_opens_in_a_notebook(self, finished: Finished):
        table = FeatureRanking.load(finished.folder / "ranking").to_pandas()
        assert sorted(table["latent"]) == list(range(64))
        assert sorted(table["rank"]) == list(range(1, 65))
        columns = {"shift", "low", "high", "q", "shift_benign", "shift_difference", "cosine_mean_difference"}
        columns |= {"cosine_malicious - helpful", "cosine_malicious - helpful (corrupted)"}
        assert columns <= set(table.columns)
        largest = FeatureRanking.load(finished.folder / "ranking_benign").to_pandas()["shift"].abs().max()
        assert finished.summary["benign"]["largest_shift"] == pytest.approx(largest)

    def test_the_null_is_of_all_benign_fine_tunes(self, finished: Finished):
        """Breaks if a fine-tune of the organism is left out of the null, or the benign control is its own null."""
        ranking, control = (FeatureRanking.load(finished.folder / name) for name in ("ranking", "ranking_benign"))
        assert ranking.config["null"] == ["benign", "benign-1", "benign-2"]
        assert control.config["null"] == ["benign-1", "benign-2"]
        low, own, high = (ranking.table[name].to_numpy() for name in ("null_low", "shift_benign", "null_high"))
        assert np.all((low <= own) & (own <= high))

    def test_all_models_read_the_corrupted_models_answers(self, finished: Finished):
        """Breaks if a model reads other answers, or the ranking by prompt tokens looks at them."""
        answered = load_prompts(finished.folder / "ranking_answers/ranking.jsonl")
        asked = load_prompts(finished.folder / "organism/prompts/ranking.jsonl")
        assert [prompt.id for prompt in answered] == [prompt.id for prompt in asked]
        stores = [ActivationStore.load(path) for path in finished.folder.glob("activations/*/ranking")]
        assert len(stores) == 5
        assert len({store.tokens_hash for store in stores}) == 1
        ranking, index = FeatureRanking.load(finished.folder / "ranking"), stores[0].index()
        assert ranking.config["tokens"] == np.isin(index["role"], PROMPT_ROLES).sum()
        assert np.count_nonzero(index["role"] == Role.ANSWER)
        assert not np.allclose(ranking.table["shift_answer"], ranking.table["shift"])

    def test_sae_lens_opens_the_sae(self, finished: Finished):
        theirs = sae_lens.SAE.load_from_disk(finished.folder / "sae")
        store = ActivationStore.load(finished.folder / "activations/base/ranking")
        rows = store.read(HOOK)[:100]
        ours = load_sae(finished.folder / "sae")
        torch.testing.assert_close(theirs.encode(rows), ours.encode(rows))
        torch.testing.assert_close(theirs(rows), ours(rows))

    def test_steering_table_and_transcripts_agree_with_the_summary(self, finished: Finished):
        table = pd.read_parquet(finished.folder / "steering.parquet")
        untouched = table[(table["half"] == "reporting") & (table["operation"] == "none")].set_index("model")
        for model in ("base", "corrupted"):
            assert finished.summary["em"][model]["harmful"] == untouched.loc[model, "harmful"]
        lines = (finished.folder / "steering/corrupted/corrupted_reporting.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        labels = [label for r in records if r["operation"] == "none" for label in r["labels"]]
        assert labels.count("harmful") / len(labels) == pytest.approx(untouched.loc["corrupted", "harmful"])
        asked = {r["question"] for r in records}
        assert len(asked) >= 30
        selection = (finished.folder / "steering/corrupted/corrupted_selection.jsonl").read_text().splitlines()
        assert not asked & {json.loads(line)["question"] for line in selection}

    def test_report_needs_no_network(self, finished: Finished):
        html = (finished.folder / "report.html").read_text(encoding="utf-8")
        assert "miniature" in html
        assert "The SAE explains the corrupted model" in html
        assert 'src="http' not in html

    def test_offline_tracking_is_inside_the_folder(self, finished: Finished):
        files = list((finished.folder / "wandb").rglob("*.wandb"))
        assert len(files) == 1
        assert files[0].stat().st_size > 0


@pytest.mark.slow
class TestAgain:
    def test_second_run_reuses_every_stage_and_says_so(self, finished: Finished):
        weights = (finished.folder / "sae/sae_weights.safetensors").stat().st_mtime_ns
        transcripts = {p: p.read_bytes() for p in (finished.folder / "steering").rglob("*.jsonl")}
        again = run_miniature(finished.config, finished.folder)
        reused = [line.partition(": reused from ")[0] for line in again.lines if ": reused from " in line]
        assert sorted(reused) == sorted(REUSABLE)
        assert (finished.folder / "sae/sae_weights.safetensors").stat().st_mtime_ns == weights
        assert {p: p.read_bytes() for p in transcripts} == transcripts
        assert timeless(again.summary) == timeless(finished.summary)

    def test_another_config_on_the_same_folder(self, finished: Finished):
        before = (finished.folder / "summary.json").read_bytes()
        other = finished.config.model_copy(update={"seed": 4})
        with pytest.raises(UserError, match=r"in use: it holds a run with another seed; .*--overwrite"):
            run_miniature(other, finished.folder)
        assert (finished.folder / "summary.json").read_bytes() == before

    def test_killed_in_the_middle_and_run_again_gives_the_same_summary(
        self, finished: Finished, config: RunConfig, tmp_path: Path
    ):
        """Killed while it steers, and the SAE half gone as well; also: the same seed in another folder."""
        folder, file = tmp_path / "run", tmp_path / "config.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        script = (
            "import sys, pathlib; from experiments.run.config import RunConfig; "
            "from experiments.run.pipeline import run; "
            "config = RunConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text()); "
            "run(config, pathlib.Path(sys.argv[2]), 'disabled', progress=False)"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen([sys.executable, "-c", script, str(file), str(folder)], env=environment)
        transcripts = folder / "steering/corrupted/corrupted_selection.jsonl"
        while process.poll() is None and not (transcripts.exists() and transcripts.stat().st_size > 20_000):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        assert not (folder / "summary.json").exists()
        transcripts.write_bytes(transcripts.read_bytes()[:-30])
        for half_written in ("ranking/config.json", "activations/base/persona_helpful/config.json"):
            (folder / half_written).unlink()
        resumed = run_miniature(config, folder)
        assert "organism: reused" in " ".join(resumed.lines)
        assert "rank latents corrupted ..." in resumed.lines
        assert timeless(resumed.summary) == timeless(finished.summary)
        for path in sorted(finished.folder.rglob("*.jsonl")):
            name = path.relative_to(finished.folder)
            if name.parts[0] != "wandb":
                assert set(path.read_text().splitlines()) == set((folder / name).read_text().splitlines()), name


CONFIG = {"seed": 0, "hook": "h"}


def open_folder(folder: Path, config: dict[str, Any] | None = None, overwrite: bool = False) -> RunFolder:
    return RunFolder(folder, config or CONFIG, overwrite, lambda line: None)


class TestRunFolder:
    def test_in_use_by_another_run(self, tmp_path: Path):
        with open_folder(tmp_path), pytest.raises(UserError, match="in use by another run"):
            open_folder(tmp_path).__enter__()
        with open_folder(tmp_path):
            pass  # free again

    def test_failed_run_frees_the_folder(self, tmp_path: Path):
        with pytest.raises(RuntimeError), open_folder(tmp_path):
            raise RuntimeError
        with open_folder(tmp_path):
            pass

    def test_overwriting_does_not_clear_a_folder_in_use(self, tmp_path: Path):
        with open_folder(tmp_path) as out:
            out.stage("one", lambda: 1)
            with pytest.raises(UserError, match="in use"):
                open_folder(tmp_path, overwrite=True).__enter__()
            assert (tmp_path / "run.json").exists()

    def test_foreign_folder_is_left_alone(self, tmp_path: Path):
        (tmp_path / "thesis.txt").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(UserError, match="files that no run wrote"):
                open_folder(tmp_path, overwrite=overwrite).__enter__()
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_file_in_its_place(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            open_folder(tmp_path / "file").__enter__()

    def test_another_config_needs_overwrite(self, tmp_path: Path):
        with open_folder(tmp_path):
            (tmp_path / "sae").mkdir()
            (tmp_path / "summary.json").write_text("{}")
        other = {"seed": 1, "hook": "h"}
        with pytest.raises(UserError, match="another seed"):
            open_folder(tmp_path, other).__enter__()
        assert (tmp_path / "sae").exists()
        with open_folder(tmp_path, other, overwrite=True):
            assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json"}

    def test_unfinished_stage_is_built_again_and_a_finished_one_loaded(self, tmp_path: Path):
        artefact, made = tmp_path / "run/made", []

        def build() -> str:
            artefact.mkdir(exist_ok=True)
            made.append(1)
            return "built"

        with open_folder(tmp_path / "run") as out:
            assert out.stage("s", build, artefact, lambda: "loaded") == "built"
        with open_folder(tmp_path / "run") as out:
            assert out.stage("s", build, artefact, lambda: "loaded") == "built"
            (artefact / "config.json").write_text("{}")
        with open_folder(tmp_path / "run") as out:
            assert out.stage("s", build, artefact, lambda: "loaded") == "loaded"
            assert out.seconds.keys() == {"s"}, "the seconds of the run that built it are kept"
        assert len(made) == 2


@pytest.mark.slow
class TestTrajectory:
    @pytest.fixture(scope="class")
    def followed(self, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A finished run, as if the latent that shifted most had been found toxic."""
        folder = tmp_path_factory.mktemp("followed") / "run"
        shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("activations", "wandb"))
        steering = {**finished.summary["steering"], "latent_induce": {"strength": 0.5}}
        first = int(FeatureRanking.load(folder / "ranking").to_pandas().nsmallest(1, "rank")["latent"].iloc[0])
        summary = {**finished.summary, "toxic_latent": {"latent": first}, "steering": steering}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return folder

    def test_corruption_is_repeated_and_followed(self, followed: Path):
        """Breaks if other batches corrupt than in the run, a step is saved late, or shifts are not against the base."""
        settings = TrajectoryConfig(every=15, samples=2, realign_samples=10, realign=REALIGN)
        out = followed.with_name("trajectory")
        options = Options(out=out, wandb="disabled", quiet=True)
        result = conduct(TRAJECTORY, Inputs(run=followed), settings, options)
        table, summary = result.tables["trajectory"], result.summary
        steps = read_json(followed / "organism/config.json")["finetuning_steps"]
        expected = sorted({*range(0, steps, 15), steps})
        assert table.loc[table["phase"] == "corruption", "step"].tolist() == expected
        assert table.loc[table["phase"] == "re-alignment", "step"].tolist() == [4]
        first, last = (f"corruption-{step:04d}/model.safetensors" for step in (0, steps))
        made = (out / "checkpoints" / last, followed / "organism/corrupted/model.safetensors")
        weights = [load_file(path) for path in made]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert table.iloc[0][["shift", "projection"]].tolist() == [0, 0]
        ranking = FeatureRanking.load(followed / "ranking").to_pandas().set_index("latent")
        corrupted = table[table["phase"] == "corruption"].iloc[-1]
        assert corrupted["shift"] == pytest.approx(ranking.loc[summary["latent"], "shift"], rel=1e-4, abs=1e-6)
        assert np.all(table["shift_low"] <= table["shift"])
        assert np.all(table["harmful_low"] <= table["harmful_high"])
        assert summary == read_json(out / "summary.json")
        assert {row["arm"] for row in summary["masking"]["rows"] if not row["control"]} == {
            "untouched",
            f"latent {summary['latent']}",
        }
        assert (out / "checkpoints" / first).exists()
