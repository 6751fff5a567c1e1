"""Training of one or several SAEs in one pass over the activations, resumable at every step and data-parallel."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from sae.training.checkpoint import TrainingCheckpoint
from sae.training.config import LOG_EVERY, OURS, Log, TrainConfig
from sae.training.engine import Normalisation, Trainer
from sae.training.export import to_sae_lens
from sae.training.ranks import Ranks
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Job:
    """One SAE to train: the hook point whose activations it explains, and how."""

    hook: str
    config: TrainConfig


def train_sae(
    data: TrainingData,
    hook: str,
    config: TrainConfig,
    setup: TrainingSetup = TrainingSetup(),  # noqa: B008 (frozen)
) -> "SAE":
    """`train_saes` with one SAE, of any architecture.

    Architectures that are not our engine's go to sae-lens's trainer, which takes of `setup` only `log`, `progress` and
    `device`: it can neither resume nor share its work.
    """
    if config.architecture not in OURS:
        from sae.training.lens import train_with_sae_lens

        return train_with_sae_lens(data, hook, config, setup)
    return train_saes(data, {"sae": Job(hook, config)}, setup)["sae"]


def train_saes(
    data: TrainingData,
    jobs: Mapping[str, Job],
    setup: TrainingSetup = TrainingSetup(),  # noqa: B008 (frozen)
) -> "dict[str, SAE]":
    """Trains SAEs (sizes, k, seeds, layers) on the same batches, each of which is read once for a hook.

    Args:
        data: Activations.
        jobs: What to train, by name; all with equal `batch` and `steps`.
        setup: Where the training runs, what it shows, and where it keeps its state.

    Returns:
        sae-lens SAEs on the setup's device, by job. They take raw activations (the scale is folded into them), and
        their decoder rows have unit norm: a latent's activation is the length of what it adds to the residual stream.

    Raises:
        UserError: if jobs do not fit together or into the engine, the state is of another training, the activations
            do not vary, or a loss stops being finite.
    """
    batch, steps = _common(jobs)
    device, ranks = setup.device, setup.ranks
    hooks = list(dict.fromkeys(job.hook for job in jobs.values()))
    samples = {hook: data.sample(hook) for hook in hooks}
    trainers = {name: _trainer(job, samples[job.hook], device, ranks) for name, job in jobs.items()}
    checkpoint, start = _continued(data, jobs, trainers, setup)
    batches = {hook: data.batches(hook, batch, start, device) for hook in hooks}
    part, watch = ranks.part(batch), _Watch(trainers, setup.log if ranks.is_first else None, start)
    bar = tqdm(
        range(start, steps),
        initial=start,
        total=steps,
        desc="training SAE",
        unit="step",
        disable=not (setup.progress and ranks.is_first),
    )
    for step in bar:
        rows = {hook: next(batches[hook])[part] for hook in hooks}
        seen = {name: trainer.step(rows[jobs[name].hook], step) for name, trainer in trainers.items()}
        if step % LOG_EVERY == 0 or step == steps - 1:
            bar.set_postfix_str(watch.report(seen, step), refresh=False)
        if checkpoint is not None and ranks.is_first and checkpoint.due():
            checkpoint.save(step + 1, _tensors(trainers))
    trained = {
        name: to_sae_lens(t.weights, t.normalisation, t.config, samples[jobs[name].hook])
        for name, t in trainers.items()
    }
    ranks.wait()
    return trained


def _common(jobs: Mapping[str, Job]) -> tuple[int, int]:
    """Batch and steps of all jobs."""
    sizes = {(job.config.batch, job.config.steps) for job in jobs.values()}
    if len(sizes) != 1:
        raise UserError(f"SAEs of one pass need equal batch and steps, here are {sorted(sizes)}; train them apart.")
    foreign = [name for name, job in jobs.items() if job.config.architecture not in OURS]
    if foreign:
        raise UserError(
            f"{foreign[0]} is a {jobs[foreign[0]].config.architecture} SAE, which sae-lens's trainer trains one at a "
            f"time; train it apart, or choose {' or '.join(OURS)}."
        )
    return sizes.pop()


def _trainer(job: Job, sample: Float[Tensor, "rows d_model"], device: str, ranks: Ranks) -> Trainer:
    normalisation = Normalisation.of(sample.to(device), job.config.centre)
    return Trainer(normalisation, job.config, torch.device(device), ranks)


def _continued(
    data: TrainingData, jobs: Mapping[str, Job], trainers: Mapping[str, Trainer], setup: TrainingSetup
) -> tuple[TrainingCheckpoint | None, int]:
    """The checkpoint, and the steps that are already done; the trainers get the state that it holds."""
    if setup.checkpoints is None:
        return None, 0
    described = {name: {"hook": job.hook, **job.config.model_dump(mode="json")} for name, job in jobs.items()}
    identity = {"data": data.describe(), "jobs": described}
    checkpoint = TrainingCheckpoint(setup.checkpoints, identity, setup.checkpoint_seconds)
    saved = checkpoint.load()
    if saved is None:
        return checkpoint, 0
    for name, trainer in trainers.items():
        prefix = f"{name}/"
        trainer.restore({k.removeprefix(prefix): t for k, t in saved.tensors.items() if k.startswith(prefix)})
    return checkpoint, saved.steps


def _tensors(trainers: Mapping[str, Trainer]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor for name, t in trainers.items() for key, tensor in t.state().items()}


class _Watch:
    """Metrics and speed."""

    def __init__(self, trainers: Mapping[str, Trainer], log: Log | None, start: int) -> None:
        self._trainers, self._log = trainers, log
        self._started, self._start = time.perf_counter(), start

    def report(self, seen: Mapping[str, Mapping[str, Tensor]], step: int) -> str:
        """Logs the metrics of each SAE, and gives a line for the bar."""
        found = {name: trainer.metrics(seen[name], step) for name, trainer in self._trainers.items()}
        batch = next(iter(self._trainers.values())).config.batch
        speed = (step + 1 - self._start) * batch / (time.perf_counter() - self._started)
        for name, metrics in found.items():
            metrics["tokens_per_second"] = speed
            if self._log is not None:
                self._log(name, metrics)
        worst = max(found.values(), key=lambda metrics: metrics["fvu"])
        return (
            f"fvu={worst['fvu']:.4f}, l0={worst['l0']:.1f}, dead={worst['dead_fraction']:.1%}, {speed / 1e3:.1f}k tok/s"
        )
