"""Trains one SAE or several on stores of activations, in one process or in many.

    sae-diff train-sae --store runs/acts/base --hook blocks.15.hook_resid_post --latents 16384 --k 64 --out runs/sae
    torchrun --nproc-per-node 8 -m experiments.train_sae (the same options)

Under torchrun every process takes a part of each batch. Whoever is killed and started again continues where the state
was last written; a finished SAE is not trained again.
"""

import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from activations.artefact import CONFIG
from activations.device import require_device
from activations.errors import UserError
from activations.memory import InMemory
from activations.source import ActivationSource
from activations.store import ActivationStore
from sae.storage import save_sae
from sae.training.checkpoint import remove_state
from sae.training.config import OURS, Log, TrainConfig
from sae.training.ranks import join_ranks
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import Job, train_sae, train_saes


def train_from_stores(
    stores: Sequence[Path],
    shares: Sequence[float],
    jobs: Mapping[str, Job],
    out: Path,
    seed: int = 0,
    device: str = "cpu",
    in_memory: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    log: Log | None = None,
) -> list[Path]:
    """Trains the jobs in one pass and saves each SAE to `out/<job>`.

    Args:
        stores: Folders of stores; rows of all are mixed in every batch.
        shares: Share of each store, in all 1; empty: equal shares.
        jobs: What to train; architectures of sae-lens's trainer are trained one after another.
        out: The state of an unfinished training lies in `out/state`.
        seed: Of the shuffle.
        device: Torch device; under torchrun with CUDA each process takes its own GPU.
        in_memory: Reads the stores into memory first.
        overwrite: Trains finished SAEs again.
        progress: Shows bars.
        log: Receives a job's name and its metrics.

    Returns:
        The folders.

    Raises:
        UserError: as `ActivationStore.load` and `train_saes` do, or if shares do not fit the stores.
    """
    if shares and len(shares) != len(stores):
        raise UserError(f"There are {len(stores)} stores and {len(shares)} shares; give one --share for each --store.")
    require_device(device)
    ranks, device = join_ranks(device)
    waiting = {name: job for name, job in jobs.items() if overwrite or not (out / name / CONFIG).exists()}
    if not waiting:
        return [out / name for name in jobs]
    hooks = list(dict.fromkeys(job.hook for job in waiting.values()))
    sources = {str(folder): _source(folder, hooks, in_memory, progress) for folder in stores}
    data = TrainingData(sources, seed, dict(zip(sources, shares, strict=True)) if shares else None)
    ours = {name: job for name, job in waiting.items() if job.config.architecture in OURS}
    setup = TrainingSetup(device, log, progress, checkpoints=out / "state", ranks=ranks)
    trained = train_saes(data, ours, setup) if ours else {}
    if ranks.is_first:
        theirs = {name: job for name, job in waiting.items() if name not in ours}
        trained |= {name: train_sae(data, job.hook, job.config, setup) for name, job in theirs.items()}
        model = str(next(iter(sources.values())).config.get("model", "unknown"))
        for name, sae in trained.items():
            shutil.rmtree(out / name, ignore_errors=True)  # with overwrite: the earlier one
            training = jobs[name].config.model_dump(mode="json")
            parents = {f"activations {i}": folder for i, folder in enumerate(stores)}
            save_sae(sae, out / name, jobs[name].hook, model, training, parents)
        remove_state(out / "state")
    return [out / name for name in jobs]


def jobs_of(
    hooks: Sequence[str], latents: Sequence[int], k: Sequence[int], seeds: Sequence[int], common: TrainConfig
) -> dict[str, Job]:
    """Every combination of hook, width, k and seed; single values do not appear in the names."""
    jobs = {}
    for hook, width, active, seed in itertools.product(hooks, latents, k, seeds):
        named = ((hooks, hook), (latents, f"latents{width}"), (k, f"k{active}"), (seeds, f"seed{seed}"))
        name = "-".join(part for values, part in named if len(values) > 1) or "sae"
        jobs[name] = Job(hook, common.model_copy(update={"latents": width, "k": active, "seed": seed}))
    return jobs


def _source(folder: Path, hooks: Sequence[str], in_memory: bool, progress: bool) -> ActivationSource:
    store = ActivationStore.load(folder)
    return InMemory.copy_of(store, hooks, progress) if in_memory else store


if __name__ == "__main__":
    from experiments.cli import main

    sys.argv.insert(1, "train-sae")
    main()
