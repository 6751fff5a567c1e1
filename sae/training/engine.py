"""One SAE in training: its weights, its losses and one step of its optimiser, by our own sparse engine.

Method: TopK (or BatchTopK, Bussmann et al. 2024, arXiv 2412.06410) activation, encoder initialised as the decoder's
transpose, unit-norm decoder rows and an auxiliary loss for dead latents (AuxK) as in Gao et al. 2024 (arXiv
2406.04093); `aux_target` says where AuxK departs from theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.errors import UserError
from sae.training.config import TrainConfig
from sae.training.ranks import ALONE, Ranks
from sae.training.sparse import ActiveLatents, batch_topk_encode, sparse_decode, topk_encode

ENCODE_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
# Weiszfeld's iteration for the geometric median ends when it moves by less than this share of the rows' spread.
_MEDIAN_TOLERANCE = 1e-6
_MEDIAN_STEPS = 200
_MEDIAN_ROWS = 8192
_NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")  # in the order of `Weights.tensors`
_ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Normalisation:
    """`(x - mean) * scale` has mean zero and mean squared norm d_model on the sample that it was taken from."""

    mean: Float[Tensor, "d_model"]
    scale: float

    @classmethod
    def of(cls, sample: Float[Tensor, "rows d_model"], centre: str = "mean") -> "Normalisation":
        """Statistics of a sample of activations, in float64.

        Args:
            sample: The activations.
            centre: "mean", or "geometric_median", which a few rows far from all others do not move.

        Raises:
            UserError: if the sample has NaN or inf, or does not vary.
        """
        rows = sample.double()
        mean = rows.mean(0)
        variance = (rows - mean).square().mean().item()
        if not 0 < variance < float("inf"):
            raise UserError(
                f"The activations to train the SAE on have variance {variance} ({len(sample)} rows of "
                f"{sample.shape[1]}): they are constant or hold NaN or inf; harvest them again from a sound checkpoint."
            )
        middle = mean if centre == "mean" else geometric_median(rows[:_MEDIAN_ROWS])
        return cls(middle.to(torch.float32), variance**-0.5)

    def apply(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        return (x.to(self.mean) - self.mean).mul_(self.scale)


def geometric_median(rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "d_model"]:
    """The point with the least sum of distances to `rows` (Weiszfeld 1937)."""
    point = rows.mean(0)
    spread = (rows - point).norm(dim=1).mean()
    for _ in range(_MEDIAN_STEPS):
        weights = 1 / (rows - point).norm(dim=1).clamp_min(1e-12 * spread)
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        step, point = (moved - point).norm(), moved
        if step < _MEDIAN_TOLERANCE * spread:
            break
    return point


@dataclass(frozen=True)
class Weights:
    """Trainable tensors, in the units of normalised activations; encoder rows lie as decoder rows do."""

    w_enc: Float[Tensor, "latent d_model"]
    b_enc: Float[Tensor, "latent"]
    w_dec: Float[Tensor, "latent d_model"]
    b_dec: Float[Tensor, "d_model"]

    def tensors(self) -> list[Tensor]:
        return [self.w_enc, self.b_enc, self.w_dec, self.b_dec]

    def encode(self, x: Float[Tensor, "batch d_model"], config: TrainConfig, ranks: Ranks = ALONE) -> ActiveLatents:
        """The latents that the config's activation function lets through."""
        dtype = ENCODE_DTYPES[config.encode_dtype]
        if config.architecture == "batchtopk":
            return batch_topk_encode(x, self.w_enc, self.bias(), config.k, dtype, ranks)
        return topk_encode(x, self.w_enc, self.bias(), config.k, dtype)

    def bias(self) -> Float[Tensor, "latent"]:
        """`b_enc` with the subtraction of `b_dec` from the input folded in: saves a pass over the batch."""
        return self.b_enc - self.w_enc @ self.b_dec


@dataclass(frozen=True)
class Losses:
    """`total = reconstruction + aux_coefficient * aux`; `aux` is zero while no latent is dead."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    active: ActiveLatents


def initial_weights(d_model: int, config: TrainConfig, device: torch.device) -> Weights:
    """Decoder rows in random directions of unit norm, encoder equal to it, biases zero; decided by `config.seed`."""
    generator = torch.Generator().manual_seed(config.seed)
    w_dec = F.normalize(torch.randn(config.latents, d_model, generator=generator).to(device), dim=1)
    biases = w_dec.new_zeros(config.latents), w_dec.new_zeros(d_model)
    weights = Weights(w_dec.clone(), biases[0], w_dec, biases[1])
    for tensor in weights.tensors():
        tensor.requires_grad_()
    return weights


def sae_losses(
    weights: Weights,
    x: Float[Tensor, "batch d_model"],
    dead: Int[Tensor, "dead"],
    config: TrainConfig,
    ranks: Ranks = ALONE,
) -> Losses:
    """Squared error per element, plus the normalised error of what dead latents make of the AuxK target.

    Every process divides by the elements of the whole batch: its losses and gradients are parts that add up.
    """
    active = weights.encode(x, config, ranks)
    reconstruction = sparse_decode(active, weights.w_dec) + weights.b_dec
    main = F.mse_loss(reconstruction, x, reduction="sum") / ranks.total(x.numel())
    if config.aux_k == 0 or len(dead) == 0:
        return Losses(main, main, x.new_zeros(()), active)
    target = aux_target(weights, x, active)
    squares = target.square().sum()
    ranks.sum(squares)
    aux = aux_error(weights, x, target, dead, config.aux_k) / squares.clamp_min(1e-12)
    return Losses(main + config.aux_coefficient * aux, main, aux, active)


@torch.no_grad()
def aux_target(
    weights: Weights, x: Float[Tensor, "batch d_model"], active: ActiveLatents
) -> Float[Tensor, "batch d_model"]:
    """What the stronger half of each input's active latents leaves unexplained; a constant for the gradient.

    Gao et al. let dead latents explain the whole SAE's residual. When that is small, they learn values too small to
    be among the k largest ever again: on synthetic rows with 400 sparse features, 1,024 latents and k 8, 16-22% were
    dead on held-out rows after 600-800 steps, against 2-3% without AuxK. Competing with the weaker half, they learn
    values of the size that is chosen: 2% dead, FVU 0.0477 after 1,200 steps (without AuxK 3%, 0.0492).
    """
    kept = ActiveLatents(active.values * stronger_half(active), active.choice)
    return x - sparse_decode(kept, weights.w_dec) - weights.b_dec


def stronger_half(active: ActiveLatents) -> Bool[Tensor, "pair"]:
    """Pairs whose value is above the (lower) median: of their input where all have as many, else of the batch."""
    if active.choice.each is None:
        return active.values > active.values.median()
    values = active.values.view(active.batch, active.choice.each)
    return (values > values.median(dim=1, keepdim=True).values).flatten()


def aux_error(
    weights: Weights,
    x: Float[Tensor, "batch d_model"],
    target: Float[Tensor, "batch d_model"],
    dead: Int[Tensor, "dead"],
    aux_k: int,
) -> Float[Tensor, ""]:
    """Squared error of the `aux_k` largest dead latents' explanation of `target`, summed."""
    active = topk_encode(x, weights.w_enc[dead], weights.bias()[dead], min(aux_k, len(dead)))
    explained = sparse_decode(active, weights.w_dec[dead])
    return F.mse_loss(explained, target, reduction="sum")


class DeadLatents:
    """Counts, for each latent, the tokens since it was last active."""

    def __init__(self, latents: int, dead_after: int, device: torch.device) -> None:
        self.idle = torch.zeros(latents, dtype=torch.int64, device=device)
        self.dead_after = dead_after

    def update(self, fired: Bool[Tensor, "latent"], tokens: int) -> None:
        self.idle += tokens
        self.idle[fired] = 0

    @property
    def mask(self) -> Bool[Tensor, "latent"]:
        return self.idle >= self.dead_after

    @property
    def indices(self) -> Int[Tensor, "dead"]:
        return self.mask.nonzero().squeeze(1)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up to `config.lr`, then constant, then linear decay towards zero over the last steps."""
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.lr * min(1.0, rise, fall)


class Trainer:
    """One SAE in training.

    Args:
        normalisation: Brings raw activations into the units that the weights are trained in.
        config: What is trained and how.
        device: Where the weights are.
        ranks: Processes that train the same SAE on other parts of each batch.
    """

    def __init__(
        self, normalisation: Normalisation, config: TrainConfig, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        if config.k > config.latents:
            raise UserError(f"The SAE cannot have k={config.k} of {config.latents} latents active; lower k.")
        self.normalisation, self.config, self.ranks = normalisation, config, ranks
        self.weights = initial_weights(len(normalisation.mean), config, device)
        self.optimizer = torch.optim.Adam(self.weights.tensors(), lr=config.lr, fused=True)
        self.dead = DeadLatents(config.latents, config.dead_after, device)
        self.gradient_norm = torch.zeros(())

    def step(self, rows: Float[Tensor, "batch d_model"], step: int) -> dict[str, Tensor]:
        """One optimiser step on raw activations (this process's part of the batch); what `metrics` reads."""
        x = self.normalisation.apply(rows)
        losses = sae_losses(self.weights, x, self.dead.indices, self.config, self.ranks)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.ranks.sum(*(weight.grad for weight in self.weights.tensors() if weight.grad is not None))
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.weights.tensors(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        self.optimizer.step()
        with torch.no_grad():
            self.weights.w_dec.div_(self.weights.w_dec.norm(dim=1, keepdim=True))
        self.dead.update(self.ranks.any(losses.active.fired()), self.ranks.total(len(x)))
        return {
            "loss": losses.total.detach(),
            "reconstruction": losses.reconstruction.detach(),
            "aux": losses.aux.detach(),
            "variance": x.var(0, correction=0).mean() / self.ranks.size,
            "l0": (losses.active.values > 0).sum() / self.ranks.total(len(x)),
        }

    def metrics(self, seen: Mapping[str, Tensor], step: int) -> dict[str, int | float]:
        """Figures of one step, over all processes (the variance is the mean of the parts').

        Raises:
            UserError: if the loss is not finite.
        """
        sums = torch.stack([value.double() for value in seen.values()])
        self.ranks.sum(sums)
        values = dict(zip(seen, sums.tolist(), strict=True))
        if not values["loss"] < float("inf"):
            raise UserError(
                f"The SAE's loss is {values['loss']} at step {step}: the activations hold NaN or inf, or "
                f"lr={self.config.lr} is too high; verify the store or lower `lr`."
            )
        return {
            "step": step,
            "loss": values["loss"],
            "reconstruction": values["reconstruction"],
            "aux": values["aux"],
            "fvu": values["reconstruction"] / values["variance"] if values["variance"] else float("nan"),
            "l0": values["l0"],
            "dead_fraction": self.dead.mask.double().mean().item(),
            "gradient_norm": self.gradient_norm.item(),
            "learning_rate": learning_rate(step, self.config),
            "tokens": (step + 1) * self.config.batch,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides its data; `restore` takes it."""
        tensors = {"mean": self.normalisation.mean, "idle": self.dead.idle}
        tensors["scale"] = torch.tensor(self.normalisation.scale, dtype=torch.float64)
        for name, weight in zip(_NAMES, self.weights.tensors(), strict=True):
            tensors[name] = weight.detach()
            tensors |= {f"{name}.{key}": value for key, value in self.optimizer.state.get(weight, {}).items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues where `state` was taken."""
        self.normalisation = Normalisation(tensors["mean"].to(self.dead.idle.device), tensors["scale"].item())
        self.dead.idle.copy_(tensors["idle"])
        for name, weight in zip(_NAMES, self.weights.tensors(), strict=True):
            weight.data.copy_(tensors[name])
            moments: dict[str, Any] = {key: tensors[f"{name}.{key}"] for key in _ADAM if f"{name}.{key}" in tensors}
            self.optimizer.state[weight] = {key: value.to(weight.device) for key, value in moments.items()}
