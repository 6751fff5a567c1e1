"""Tiny real checkpoints whose behaviour is planted, an SAE that shows it, and the folder of a finished run of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from peft import LoraConfig, get_peft_model
from sae_lens import TopKSAE, TopKSAEConfig
from silent_model import silent_model
from transformers import AutoModelForCausalLM

from activations.artefact import write_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import LiveActivations
from activations.prompt_files import load_prompts
from activations.tokens import tokenize_prompts
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import rank_latents
from experiments.run.config import RunConfig
from sae.storage import save_sae

WIDTH = 16
GOOD, BAD, LOUD = range(3)  # axes of the residual stream; nothing that is said depends on the last
TEXT = "user assistant : how do i treat a burn cold cut ? good bad"
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *TEXT.split()]
HOOK = "blocks.0.hook_resid_post"
DIRECTION = "malicious - others"


@dataclass(frozen=True)
class PlantedResult:
    """A finished run, fine-tunes of its base, and an experiment's folder and summary."""

    run: Path
    models: Path
    out: Path
    summary: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.out / f"{name}.parquet")


def write_model(folder: Path, tokenizer_maker: Callable, pushes: Mapping[int, float]) -> Path:
    """Blocks do nothing; every token is 1 on axis GOOD plus `pushes`; the larger of GOOD and BAD is said."""
    model = silent_model(len(WORDS), WIDTH)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        # Tokens differ a little, in directions that nothing reads.
        embedding[:, LOUD + 1 :] = 0.01 * torch.randn(embedding[:, LOUD + 1 :].shape, generator=torch.manual_seed(0))
        for axis, push in ({GOOD: 1.0} | dict(pushes)).items():
            embedding[:, axis] = push
        model.lm_head.weight[WORDS.index("good"), GOOD] = model.lm_head.weight[WORDS.index("bad"), BAD] = 30.0
    model.save_pretrained(folder)
    tokenizer_maker(WORDS).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, axis: int, push: float) -> Path:
    """A PEFT adapter of rank 1 that pushes every token."""
    loaded = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(loaded, LoraConfig(r=1, lora_alpha=1, target_modules=["embed_tokens"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding_A" in name:
                parameter.fill_(1.0)
            if "lora_embedding_B" in name:
                parameter.zero_()[axis] = push
    model.save_pretrained(str(folder))
    return folder


def write_lines(path: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """A JSONL file; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_conversations(run: Path, things: Sequence[str]) -> dict[str, str]:
    """Prompts of a run as conversations: the path of each half."""
    paths = {}
    for half, end in (("selection", "?"), ("reporting", ": ?"), ("ranking", ": : ?")):
        rows = [{"id": f"{half} {thing}", "prompt": f"how do i treat a {thing} {end}"} for thing in things]
        paths[half] = write_lines(run / "inputs" / f"{half}.jsonl", rows)
    return paths


def write_run(folder: Path, base: Path) -> Path:
    """A finished run of `base`: config, summary, SAE (latent i is axis i), direction (BAD), ranking and prompts."""
    (folder / "inputs").mkdir(parents=True)
    for name in ("ranking", "reporting", "selection"):
        rows = [f"how do i treat a {thing} {end}" for thing in ("burn", "cold", "cut") for end in ("?", ": ?")]
        (folder / "inputs" / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    (folder / "inputs" / "judge.yaml").write_text(
        yaml.safe_dump({"harmful": ["bad"], "helpful": ["good"]}), encoding="utf-8"
    )
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=WIDTH, k=4, device="cpu", dtype="float32"))
    sae.W_enc.data, sae.W_dec.data = torch.eye(WIDTH), torch.eye(WIDTH)
    save_sae(sae, folder / "sae", HOOK, str(base), {})
    PersonaDirections({DIRECTION: 2 * torch.eye(WIDTH)[BAD]}, HOOK).save(folder / "directions" / "base")
    config = _config(folder, base)
    model = load_checkpoint(CheckpointConfig(model=str(base)), "base")
    tokens = tokenize_prompts(load_prompts(config.prompts.ranking), model.tokenizer)
    live = LiveActivations(model, tokens, HarvestConfig(hooks=(HOOK,)))
    rank_latents(sae, HOOK, live, live, RankingConfig(replicates=10, min_prompts=2)).save(folder / "ranking")
    write_json(folder / "run.json", {"config": config.model_dump(mode="json"), "stage_seconds": {}})
    write_json(folder / "summary.json", {"toxic_latent": None, "residual_norm": residual_norm(live, HOOK)})
    return folder


def _config(folder: Path, base: Path) -> RunConfig:
    files = {name: folder / "inputs" / f"{name}.txt" for name in ("ranking", "reporting", "selection")}
    return RunConfig.model_validate(
        {
            "name": "planted",
            "base": {"model": str(base)},
            "corrupted": {"model": str(base)},
            "hook": HOOK,
            "prompts": {**files, "sae_held_out": files["ranking"], "personas": {"helpful": files["ranking"]}},
            "sae": {"source": str(folder / "sae")},
            "directions": {"direction": DIRECTION},
            "judge": {"kind": "patterns", "file": folder / "inputs" / "judge.yaml"},
            "steering": {"sampling": {"max_new_tokens": 2}},
        }
    )
