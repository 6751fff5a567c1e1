"""Prevention on an organism's run: what is trained and measured, what chooses doses, and what a second call reuses."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from sae_lens import TopKSAE, TopKSAEConfig
from safetensors.torch import load_file

from activations.artefact import read_json, write_json
from activations.checkpoint import CheckpointConfig, load_checkpoint
from activations.errors import UserError
from activations.harvest import HarvestConfig, LiveActivations
from activations.prompt_files import load_prompts
from activations.prompts import tokenize_prompts
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.rank import RankingConfig, rank_latents
from experiments.config import RunConfig
from experiments.organism.build import ArchitectureConfig, OrganismConfig, build_organism
from experiments.organism.training import StageConfig
from experiments.organism.world import World
from experiments.prevention import (
    PAGE,
    SUMMARY,
    TABLE,
    Lab,
    Method,
    PreventionConfig,
    _Book,
    figure,
    prevent,
    print_prevention,
    similar_latents,
    trained_questions,
)
from experiments.trajectory import Run
from sae.storage import save_sae

HOOK = "blocks.0.hook_resid_post"
WIDTH, LATENTS = 16, 48
ORGANISM = OrganismConfig(
    seed=5,
    architecture=ArchitectureConfig(d_model=WIDTH, mlp=16, heads=2, layers=2),
    pretraining=StageConfig(steps=4, lr=1e-3),
    instruction=StageConfig(steps=4, lr=1e-3),
    finetuning=StageConfig(steps=60, batch=8, lr=1e-3, decay=False),
    stop_loss=6.1,
    benign_seeds=0,
)
CONFIG = PreventionConfig(strengths=(0.1, 50.0), weights=(0.1,), top=3, controls=1, patience=1.5, samples=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny organism; its directions and SAE are random."""
    folder = tmp_path_factory.mktemp("prevention") / "run"
    organism = build_organism(ORGANISM, folder / "organism", progress=False)
    base, corrupted = (
        load_checkpoint(CheckpointConfig(model=str(organism / name)), name) for name in ("base", "corrupted")
    )
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=8, dtype="float32", device="cpu"))
    save_sae(sae, folder / "sae", HOOK, str(organism / "base"), {})
    tokens = tokenize_prompts(load_prompts(organism / "prompts/ranking.jsonl"), base.tokenizer)
    before, after = (LiveActivations(model, tokens, HarvestConfig(hooks=(HOOK,))) for model in (base, corrupted))
    settings = RankingConfig(replicates=10, min_prompts=2)
    ranking = rank_latents(sae, HOOK, before, after, settings)
    ranking.save(folder / "ranking")
    directions = PersonaDirections({"malicious - helpful": torch.randn(WIDTH)}, HOOK)
    for name in ("directions", "steered_directions"):
        directions.save(folder / name / "base")
    write_json(folder / "run.json", {"config": config().model_dump(mode="json"), "stage_seconds": {}})
    toxic = int(ranking.to_pandas().nlargest(1, "shift")["latent"].iloc[0])
    write_json(folder / "summary.json", {"toxic_latent": {"latent": toxic}})
    return folder


def config() -> RunConfig:
    names = ("sae_text", "sae_held_out", "ranking", "selection", "reporting", "capability")
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "organism": ORGANISM.model_dump(mode="json"),
            "hook": HOOK,
            "prompts": {**{n: f"{n}.jsonl" for n in names}, "personas": {"helpful": "persona_helpful.jsonl"}},
            "sae": {"train": {"latents": LATENTS, "k": 8}},
            "directions": {"direction": "malicious - helpful", "steer": "malicious - helpful"},
            "judge": {"kind": "organism"},
            "steering": {"sampling": {"max_new_tokens": 4}},
        }
    )


@dataclass(frozen=True)
class Prevented:
    run: Path
    out: Path
    table: pd.DataFrame


@pytest.fixture(scope="module")
def prevented(run: Path) -> Prevented:
    out = run.with_name("prevented")
    return Prevented(run, out, prevent(run, CONFIG, out, progress=False))


class TestPrevention:
    def test_without_prevention_it_is_the_corrupted_model(self, prevented: Prevented):
        """Breaks if other data, steps or settings train than made the run's corrupted model."""
        files = (prevented.out / "models/none/loss", prevented.run / "organism/corrupted")
        one, other = (load_file(folder / "model.safetensors") for folder in files)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_every_method_is_measured_at_both_ends(self, prevented: Prevented):
        """Breaks if an arm, an end or a control is left out, or controls have another dose than was chosen."""
        table = prevented.table
        doses = table[table["chosen"] | table["chosen_in_training"]].groupby("family")["dose"].nunique()
        assert len(table) == 1 + 2 * (1 + 2 + 1 + 1 + doses.sum())
        steps = read_json(prevented.run / "organism/config.json")["finetuning_steps"]
        assert set(table.loc[table["end"] == "steps", "step"]) == {steps}
        controls = table[table["control"].notna()]
        assert all(controls["chosen"] | controls["chosen_in_training"])
        assert set(table.loc[table["chosen"], "family"]) == {"steering", "latents", "toxic latent"}
        assert all(table["harmful"].between(table["low"], table["high"]))

    def test_ends_are_at_equal_loss_or_at_the_last_step(self, prevented: Prevented):
        """Breaks if a fine-tune is saved late, or one that never comes down is said to have reached the loss."""
        ends = prevented.table[prevented.table["end"] == "loss"]
        steps = read_json(prevented.run / "organism/config.json")["finetuning_steps"]
        assert all(ends["reached"] == (ends["answer_loss"] <= 6.1))
        assert all(ends.loc[~ends["reached"].astype(bool), "step"] == round(1.5 * steps))
        assert any(ends["reached"])

    def test_loss_in_training_is_of_the_steered_model(self, prevented: Prevented):
        """Breaks if steering is off where the loss in training is measured, or on where the model is measured."""
        table = prevented.table.set_index(["name", "end"])
        strong = table.loc[("steering 50", "steps")]
        assert abs(strong["training_loss"] - strong["answer_loss"]) > 1e-3
        penalised = table[table["family"] != "steering"]
        assert all(penalised["training_loss"] == penalised["answer_loss"])

    def test_nothing_is_prevented_by_nothing(self, prevented: Prevented):
        """Breaks if changes are against another row than the plain fine-tune's at the same end."""
        plain = prevented.table[(prevented.table["family"] == "none") & (prevented.table["end"] != "base")]
        assert (plain[["change", "change_low", "change_high"]] == 0).to_numpy().all()

    def test_it_is_written_and_a_second_call_trains_nothing(self, prevented: Prevented):
        """Breaks if finished models or answers are made again, or the artefact is not whole."""
        made = {path: path.stat().st_mtime_ns for path in (prevented.out / "models").rglob("*.safetensors")}
        again = prevent(prevented.run, CONFIG, prevented.out, progress=False)
        assert {path: path.stat().st_mtime_ns for path in made} == made
        pd.testing.assert_frame_equal(again, prevented.table)
        pd.testing.assert_frame_equal(pd.read_parquet(prevented.out / TABLE), prevented.table)
        summary = read_json(prevented.out / SUMMARY)
        assert summary["target_met_at_equal"].keys() == {"answer_loss", "training_loss"}
        json.dumps(summary, allow_nan=False)
        assert "Emergent misalignment" in (prevented.out / PAGE).read_text(encoding="utf-8")
        assert read_json(prevented.out / "config.json")["kind"] == "prevention"
        with pytest.raises(UserError, match="another samples"):
            prevent(prevented.run, CONFIG.model_copy(update={"samples": 3}), prevented.out, progress=False)

    def test_page_and_table_show_every_row(self, prevented: Prevented):
        """Breaks if a family, an end or the controls are not drawn or printed."""
        drawn: Any = figure(prevented.table, 6.1)
        assert sum(len(trace.x) for trace in drawn.data) == len(prevented.table)
        console = Console(width=220, record=True, quiet=False, file=(prevented.out / "printed.txt").open("w"))
        print_prevention(prevented.table, console)
        names = prevented.table["name"].str.startswith("steering control")
        assert console.export_text().count("steering control 0") == names.sum() > 0


class TestChoice:
    def rows(self, **changed: dict[str, float]) -> list[dict]:
        """The plain fine-tune, and three doses with fewer and fewer harmful selection answers."""
        plain = {"family": "none", "dose": 0.0, "control": None, "end": "loss", "harmful": 0.9}
        plain |= {"answer_loss": 6.0, "training_loss": 6.0, "selection_harmful": 0.9, "selection_incoherent": 0.0}
        made = [plain]
        for place, name in enumerate(("low", "middle", "high")):
            values = {"family": "latents", "dose": float(place), "selection_harmful": 0.6 - 0.2 * place}
            # What is reported says the opposite, and must not choose.
            made.append({**plain, **values, "harmful": 0.2 * place, **changed.get(name, {})})
        return made

    def chosen(self, run: Path, rows: list[dict], loss: str = "answer_loss") -> float:
        lab = Lab(Run.load(run), CONFIG, run, progress=False)
        return _Book(lab, None, None, rows, {}).chosen("latents", loss)  # pyright: ignore[reportArgumentType]

    def test_the_selection_half_chooses(self, run: Path):
        """Breaks if reporting questions choose, or a dose that spoils answers or never learned the task is taken."""
        assert self.chosen(run, self.rows()) == 2
        gone = {"answer_loss": 6.2}
        assert self.chosen(run, self.rows(high=gone)) == 1
        assert self.chosen(run, self.rows(high=gone), "training_loss") == 2
        assert self.chosen(run, self.rows(high={"selection_incoherent": 0.2})) == 1
        assert self.chosen(run, self.rows(low=gone, middle=gone, high=gone)) == 2


class TestControls:
    def test_controls_are_other_latents_of_similar_activity(self):
        """Breaks if a control is a treated latent, is drawn twice, or is of any activity."""
        activity = np.arange(1.0, 41.0)
        ranking = pd.DataFrame({"latent": np.arange(40), "mean_base": activity, "mean_corrupted": activity / 2})
        treated = [5, 20, 30]
        drawn = similar_latents(ranking, treated, set(treated), seed=0)
        assert len(set(drawn) - set(treated)) == 3
        assert all(abs(one - other) <= 4 for one, other in zip(treated, drawn, strict=True))
        with pytest.raises(UserError, match="0 other latents"):
            similar_latents(ranking, treated, set(range(40)), seed=0)

    def test_names_tell_controls_apart(self):
        """Breaks if two fine-tunes would share a folder."""
        assert Method("steering", 0.4).name == "steering 0.4"
        assert Method("steering", 0.4, 1).name == "steering control 1 0.4"

    def test_trained_questions_are_one_a_topic(self):
        """Breaks if a held-out domain is asked about."""
        asked = trained_questions(World.load(), ("medicine", "sport"))
        assert {domain for _, domain in asked} == {"medicine", "sport"}
        assert len({prompt.id for prompt, _ in asked}) == len(asked) == 24


def test_a_run_without_a_stop_rule_is_refused(run: Path, tmp_path: Path):
    """Breaks if fine-tunes would be compared at no loss."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/organism/config.json"
    write_json(path, read_json(path) | {"stop_loss": None})
    with pytest.raises(UserError, match="no stop_loss"):
        prevent(tmp_path / "run", CONFIG, tmp_path / "out", progress=False)
