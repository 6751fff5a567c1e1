"""A finished run of planted checkpoints, made by the pipeline itself."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from planted_models import BAD, GOOD, HOOK, LOUD, WIDTH, WORDS, write_model
from sae_lens import TopKSAE, TopKSAEConfig
from transformers import AutoModelForCausalLM

from experiments.run.config import RunConfig
from experiments.run.pipeline import run
from sae.storage import save_sae

THINGS = ("burn", "cold", "cut", "treat", "user", "how")
MODELS: Mapping[str, Mapping[int, float]] = {"base": {}, "corrupted": {BAD: 1.6}, "benign": {LOUD: 1.6}}
DIRECTION = "malicious - helpful"


def write_planted_pair(folder: Path, tokenizer_maker: Callable, **changes: Any) -> Path:
    """Checkpoints beside `folder`, and a finished run of them in it.

    In all models the larger of GOOD and BAD is said, and the word "bad" is 1 on BAD, so that persona prompts differ on
    that axis. The corrupted model has every token 1.6 on BAD and says "bad"; the benign one 1.6 on an axis that nothing
    reads. Latent i of the SAE is axis i.

    Args:
        folder: Of the run.
        tokenizer_maker: The fixture of that name.
        changes: Of the config.

    Returns:
        `folder`.
    """
    place = folder.parent
    for name, pushes in MODELS.items():
        write_model(place / name, tokenizer_maker, pushes)
        model = AutoModelForCausalLM.from_pretrained(place / name)
        with torch.no_grad():
            model.model.embed_tokens.weight[WORDS.index("bad"), BAD] += 1.0
        model.save_pretrained(place / name)
    run(planted_config(place, **changes), folder, "disabled", progress=False, log=lambda line: None)
    return folder


def planted_config(place: Path, **changes: Any) -> RunConfig:
    """The config of such a run; SAE, prompts and judge are written to `place`."""
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=WIDTH, k=4, device="cpu", dtype="float32"))
    sae.W_enc.data, sae.W_dec.data = torch.eye(WIDTH), torch.eye(WIDTH)
    save_sae(sae, place / "sae", HOOK, str(place / "base"), {})
    judge = place / "judge.yaml"
    judge.write_text(yaml.safe_dump({"harmful": ["bad"], "helpful": ["good"]}), encoding="utf-8")
    files = {name: _questions(place, name, end) for name, end in (("selection", "?"), ("reporting", ": ?"))}
    files["ranking"] = files["sae_held_out"] = _questions(place, "ranking", ": : ?")
    personas = {name: _personas(place, name, word) for name, word in (("helpful", "good"), ("malicious", "bad"))}
    values = {
        "name": "planted",
        "hook": HOOK,
        **{name: {"model": str(place / name)} for name in MODELS},
        "prompts": {**files, "personas": personas},
        "sae": {"source": str(place / "sae")},
        "ranking": {"replicates": 50, "min_prompts": 4},
        "directions": {
            **{"direction": DIRECTION, "steer": DIRECTION},
            **{"positions": "prompt", "steer_positions": "prompt"},
        },
        "judge": {"kind": "patterns", "file": str(judge)},
        "steering": {"top": 4, "controls": 2, "halvings": 3, "sampling": {"samples": 2, "max_new_tokens": 2}},
        "examples": 1,
    }
    return RunConfig.model_validate(values | changes)


def _questions(place: Path, name: str, end: str) -> str:
    rows = [{"id": f"{name} {thing}", "prompt": f"how do i treat a {thing} {end}"} for thing in THINGS]
    return _write(place / f"{name}.jsonl", rows)


def _personas(place: Path, name: str, word: str) -> str:
    rows = [{"id": f"{name} {thing}", "prompt": f"{word} {word} a {thing} ?"} for thing in THINGS]
    return _write(place / f"persona_{name}.jsonl", rows)


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


__all__ = ["BAD", "DIRECTION", "GOOD", "LOUD", "planted_config", "write_planted_pair"]
