"""Architectures that sae-lens trains, with its own trainer: standard, gated, JumpReLU, Matryoshka BatchTopK."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from sae.training.config import LOG_EVERY, TrainConfig
from sae.training.export import activity_threshold
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import TrainStepOutput
    from sae_lens.training.sae_trainer import SAETrainer


def train_with_sae_lens(data: TrainingData, hook: str, config: TrainConfig, setup: TrainingSetup) -> "SAE":
    """Trains one SAE on our batches with sae-lens's trainer; it cannot resume.

    Activations are scaled to a mean norm of sqrt(d_model), the decoder starts with unit rows, and the scale is folded
    into the SAE that is returned, which takes raw activations. Of a Matryoshka BatchTopK SAE the inference threshold
    is set from data (see `activity_threshold`).

    Raises:
        UserError: if `options` has a field that the architecture's config in sae-lens lacks, or a wrong value.
    """
    sample = data.sample(hook).to(setup.device)
    batches = data.batches(hook, config.batch, device=setup.device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        trainer = _trainer(config, sample, batches, setup.device)
        for step in tqdm(range(config.steps), desc=f"training {config.architecture} SAE", disable=not setup.progress):
            output = trainer.step(next(batches))
            trainer.n_training_steps += 1
            if setup.log is not None and (step % LOG_EVERY == 0 or step == config.steps - 1):
                setup.log("sae", _metrics(trainer, output, step))
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor or 1.0)
    return _inference(trainer, config, sample)


def _trainer(
    config: TrainConfig, sample: Float[Tensor, "rows d_model"], batches: Iterator[Tensor], device: str
) -> "SAETrainer[Any, Any]":
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    sae_class, sae_config = get_sae_training_class(config.architecture)
    values: dict[str, Any] = {"d_in": sample.shape[1], "d_sae": config.latents, "device": device, "dtype": "float32"}
    values |= {"normalize_activations": "expected_average_only_in", "decoder_init_norm": 1.0}
    if "k" in sae_config.__dataclass_fields__:
        values["k"] = config.k
    try:
        sae = sae_class(sae_config(**values | config.options))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The options {config.options} do not fit a {config.architecture} SAE ({' '.join(str(error).split())}); "
            f"see the fields of sae-lens's {sae_config.__name__}."
        ) from None
    settings = SAETrainerConfig(
        total_training_samples=config.batch * config.steps,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=int(config.warmup * config.steps),
        lr_decay_steps=int(config.decay * config.steps),
        device=device,
        dead_feature_window=max(1, config.dead_after // config.batch),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, sae, batches)
    trainer.activation_scaler.scaling_factor = math.sqrt(sample.shape[1]) / sample.double().norm(dim=1).mean().item()
    return trainer


@torch.no_grad()
def _metrics(trainer: "SAETrainer[Any, Any]", output: "TrainStepOutput", step: int) -> dict[str, int | float]:
    rows = output.sae_in
    metrics: dict[str, int | float] = {
        "step": step,
        "loss": output.loss.item(),
        "fvu": ((rows - output.sae_out).square().sum() / (rows - rows.mean(0)).square().sum()).item(),
        "l0": (output.feature_acts.to_dense() > 0).sum(1).double().mean().item(),
        "dead_fraction": trainer.dead_neurons.double().mean().item(),
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "tokens": trainer.n_training_samples,
    }
    return metrics | {name: float(value) for name, value in output.losses.items()}


def _inference(trainer: "SAETrainer[Any, Any]", config: TrainConfig, sample: Float[Tensor, "rows d_model"]) -> "SAE":
    """The trained SAE as what sae-lens would load after saving it."""
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        trainer.sae.save_inference_model(Path(folder))
        sae = SAE.load_from_disk(folder, device=str(trainer.sae.device))
    if config.architecture == "matryoshka_batchtopk":
        with torch.no_grad():
            sae.threshold.zero_()  # pyright: ignore[reportCallIssue]
            sae.threshold.fill_(activity_threshold(sae.encode, sample, config.k))  # pyright: ignore[reportCallIssue]
    return sae.eval().requires_grad_(False)
