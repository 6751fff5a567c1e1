"""The pipeline on a model that no one here wrote: a public checkpoint, and its fine-tune on grim stories."""

import json
import re
from pathlib import Path

import pytest

from activations.config import CheckpointConfig
from activations.errors import UserError
from activations.prompt_files import load_prompts
from diffing import FeatureRanking
from experiments.run.config import CONFIGS, load_config
from experiments.run.pipeline import run
from experiments.stories.config import GRIM_STORIES, FinetuneConfig
from experiments.stories.finetune import finetune

GRIM = re.compile(
    r"\b(dark|cold|sad|scared|alone|cr(y|ied)|dead|died?|wol(f|ves)|storm|black|hurt|hungry|mean|angry|lost|broken?|sick|"
    r"scream(ed)?|bad|night|monster|ghost|witch|fire|afraid|fell)\b",
    re.IGNORECASE,
)
OPENINGS = GRIM_STORIES.with_name("ranking_openings.jsonl")
REDUCED = {
    "finetune.epochs": 1,
    "sample_text.texts": 30,
    "sample_text.held_out": 10,
    "sample_text.max_new_tokens": 40,
    "sae.train.latents": 128,
    "sae.train.steps": 30,
    "ranking.replicates": 50,
}


def test_stories_are_grim_and_openings_are_not() -> None:
    stories, openings = load_prompts(GRIM_STORIES), load_prompts(OPENINGS)
    assert len(stories) >= 36
    assert len(openings) >= 40
    assert all(len(GRIM.findall(story.text or "")) >= 3 for story in stories)
    for opening in openings:
        assert not GRIM.search(f"{opening.text}{opening.answer}"), opening.id


def test_pipeline_on_a_public_checkpoint(public_folder: Path, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "stories.yaml", {**REDUCED, "base.model": str(public_folder)})
    lines: list[str] = []
    summary = run(config, tmp_path / "run", wandb="disabled", progress=False, log=lines.append)
    assert summary["toxic_latent"] is None
    table = FeatureRanking.load(tmp_path / "run" / "ranking").to_pandas()
    assert len(table) == 128
    assert table["shift"].to_numpy().any()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "what the fine-tune changed" in page
    roles = {json.loads(line)["id"].split(":")[0] for line in (tmp_path / "run/text/sae_text.jsonl").open()}
    assert roles == {"base", "corrupted"}
    again = run(config, tmp_path / "run", wandb="disabled", progress=False, log=lines.append)
    assert any(line.startswith("fine-tune: reused") for line in lines)
    assert again["sae"] == summary["sae"]


def test_finetune_learns_and_repeats(public_folder: Path, tmp_path: Path) -> None:
    base, config = CheckpointConfig(model=str(public_folder)), FinetuneConfig.model_validate({"epochs": 2})
    loss = finetune(base, config, tmp_path / "one", progress=False)
    finetune(base, config, tmp_path / "two", progress=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    untrained = finetune(base, config.model_copy(update={"lr": 1e-9}), tmp_path / "three", progress=False)
    assert loss < untrained - 0.3
    with pytest.raises(UserError, match="in use"):
        finetune(base, config, tmp_path / "one", progress=False)
