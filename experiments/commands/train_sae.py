"""Trains one SAE or several on stores of activations, in one process or in many.

    sae-diff train-sae --store runs/acts/base --hook blocks.15.hook_resid_post --latents 16384 --k 64 --out runs/sae
    torchrun --nproc-per-node 8 -m experiments.cli train-sae (the same options)

Under torchrun every process takes a part of each batch. Whoever is killed and started again continues where the state
was last written; a finished SAE is not trained again.
"""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from activations.artefact import CONFIG
from activations.device import require_device
from activations.errors import UserError
from activations.memory import InMemory
from activations.source import ActivationSource
from activations.store import ActivationStore
from experiments.commands.requests import TrainRequest
from experiments.output.tracking import start_tracker
from sae.storage import save_sae
from sae.training.checkpoint import remove_state
from sae.training.config import OURS, Log, TrainConfig
from sae.training.ranks import join_ranks
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import Job, train_sae, train_saes


def train_from_stores(request: TrainRequest, common: TrainConfig) -> list[Path]:
    """Trains all combinations in one pass, tracked, and saves each SAE to a folder in `request.out`.

    Args:
        request: Stores, and what there are several values of. Architectures of sae-lens's trainer are trained one after
            another. The state of an unfinished training lies in `out/state`; under torchrun with CUDA each process
            takes its own GPU.
        common: All other settings.

    Returns:
        The folders.

    Raises:
        UserError: as `ActivationStore.load` and `train_saes` do, or if shares do not fit the stores.
    """
    jobs = jobs_of(request.hook, request.latents, request.k, request.seed, common)
    if request.share and len(request.share) != len(request.store):
        raise UserError(
            f"There are {len(request.store)} stores and {len(request.share)} shares; give one --share for each --store."
        )
    require_device(request.device)
    request.out.mkdir(parents=True, exist_ok=True)
    mode = request.wandb if os.environ.get("RANK", "0") == "0" else "disabled"
    with start_tracker(request.out, {name: job.config.model_dump() for name, job in jobs.items()}, mode) as tracker:
        _train(request, jobs, lambda name, metrics: tracker.log(name, metrics, step=int(metrics["step"])))
    return [request.out / name for name in jobs]


def _train(request: TrainRequest, jobs: Mapping[str, Job], log: Log) -> None:
    ranks, device = join_ranks(request.device)
    out, progress = request.out, not request.quiet
    waiting = {name: job for name, job in jobs.items() if request.overwrite or not (out / name / CONFIG).exists()}
    if not waiting:
        return
    hooks = list(dict.fromkeys(job.hook for job in waiting.values()))
    sources = {str(folder): _source(folder, hooks, request.in_memory, progress) for folder in request.store}
    shares = dict(zip(sources, request.share, strict=True)) if request.share else None
    data = TrainingData(sources, request.seed[0], shares)
    ours = {name: job for name, job in waiting.items() if job.config.architecture in OURS}
    setup = TrainingSetup(device, log, progress, checkpoints=out / "state", ranks=ranks)
    trained = train_saes(data, ours, setup) if ours else {}
    if not ranks.is_first:
        return
    theirs = {name: job for name, job in waiting.items() if name not in ours}
    trained |= {name: train_sae(data, job.hook, job.config, setup) for name, job in theirs.items()}
    model = str(next(iter(sources.values())).config.get("model", "unknown"))
    for name, sae in trained.items():
        shutil.rmtree(out / name, ignore_errors=True)  # with overwrite: the earlier one
        training = jobs[name].config.model_dump(mode="json")
        parents = {f"activations {i}": folder for i, folder in enumerate(request.store)}
        save_sae(sae, out / name, jobs[name].hook, model, training, parents)
    remove_state(out / "state")


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
