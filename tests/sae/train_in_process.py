"""Trains two SAEs and saves their weights: run alone, killed, or under torchrun by the tests."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from activations.memory import InMemory
from sae.training.checkpoint import remove_state
from sae.training.config import TrainConfig
from sae.training.ranks import join_ranks
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import Job, train_saes

HOOK = "blocks.0.hook_resid_post"


def main(out: Path, steps: int) -> None:
    torch.set_num_threads(1)
    ranks, device = join_ranks("cpu")
    rows = 10 * torch.randn(4096, 24, generator=torch.Generator().manual_seed(0)) + 3
    data = TrainingData({"base": InMemory.of_rows({HOOK: rows})}, seed=1)
    # Most latents die at once, so that the state of AuxK counts too.
    config = TrainConfig(latents=96, k=4, batch=128, steps=steps, dead_after=300)
    jobs = {"topk": Job(HOOK, config), "batchtopk": Job(HOOK, config.model_copy(update={"architecture": "batchtopk"}))}
    found = train_saes(
        data,
        jobs,
        TrainingSetup(progress=False, device=device, checkpoints=out / "state", checkpoint_seconds=0.0, ranks=ranks),
    )
    if ranks.is_first:
        weights = {f"{name}.{key}": value for name, sae in found.items() for key, value in sae.state_dict().items()}
        save_file(weights, out / "weights.safetensors")
        remove_state(out / "state")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
