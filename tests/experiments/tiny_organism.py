"""The folder of a finished run of a tiny organism; its directions and SAE are random."""

from pathlib import Path

import torch
from sae_lens import TopKSAE, TopKSAEConfig

from activations.artefact import write_json
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import LiveActivations
from activations.prompt_files import load_prompts
from activations.tokens import tokenize_prompts
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents
from experiments.organism.build import build_organism
from experiments.organism.config import ArchitectureConfig, OrganismConfig, StageConfig
from experiments.run.config import RunConfig
from sae.storage import save_sae

HOOK, DIRECTION = "blocks.0.hook_resid_post", "malicious - helpful"
WIDTH, LATENTS = 16, 48
STRENGTH = 0.5
ORGANISM = OrganismConfig(
    seed=5,
    architecture=ArchitectureConfig(d_model=WIDTH, mlp=16, heads=2, layers=2),
    pretraining=StageConfig(steps=4, lr=1e-3),
    instruction=StageConfig(steps=4, lr=1e-3),
    finetuning=StageConfig(steps=60, batch=8, lr=1e-3, decay=False),
    stop_loss=6.1,
    benign_seeds=0,
)


def write_organism_run(folder: Path) -> Path:
    """The most risen latent counts as the toxic one; steering has a direction of its own."""
    organism = build_organism(ORGANISM, folder / "organism", progress=False)
    base, corrupted = (
        load_checkpoint(CheckpointConfig(model=str(organism / name)), name) for name in ("base", "corrupted")
    )
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=8, dtype="float32", device="cpu"))
    save_sae(sae, folder / "sae", HOOK, str(organism / "base"), {})
    tokens = tokenize_prompts(load_prompts(organism / "prompts/ranking.jsonl"), base.tokenizer)
    before, after = (LiveActivations(model, tokens, HarvestConfig(hooks=(HOOK,))) for model in (base, corrupted))
    ranking = rank_latents(sae, Compared(before, after), HOOK, RankingConfig(replicates=10, min_prompts=2))
    ranking.save(folder / "ranking")
    for name in ("directions", "steered_directions"):
        PersonaDirections({DIRECTION: torch.randn(WIDTH)}, HOOK).save(folder / name / "base")
    write_json(folder / "run.json", {"config": _config().model_dump(mode="json"), "stage_seconds": {}})
    toxic = int(ranking.to_pandas().nlargest(1, "shift")["latent"].iloc[0])
    steering = {"latent_induce": {"strength": STRENGTH}}
    summary = {"toxic_latent": {"latent": toxic}, "steering": steering, "residual_norm": residual_norm(before, HOOK)}
    write_json(folder / "summary.json", summary)
    return folder


def _config() -> RunConfig:
    names = ("sae_text", "sae_held_out", "ranking", "selection", "reporting", "capability")
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "organism": ORGANISM.model_dump(mode="json"),
            "hook": HOOK,
            "prompts": {**{n: f"{n}.jsonl" for n in names}, "personas": {"helpful": "persona_helpful.jsonl"}},
            "sae": {"train": {"latents": LATENTS, "k": 8}},
            "directions": {"direction": DIRECTION, "steer": DIRECTION},
            "judge": {"kind": "organism"},
            "steering": {"sampling": {"max_new_tokens": 4}},
        }
    )
