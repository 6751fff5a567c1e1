"""One library's SAE training in a process of its own, for `benchmarks.sae_training`.

Reads commands as lines of JSON and answers each with one. The process may belong to another virtual environment than
ours, so nothing is imported but torch and what the library needs.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LR = 5e-4
ACTIVE_FEATURES = 32


@dataclass(frozen=True)
class Size:
    """What is trained."""

    d_model: int
    latents: int
    k: int
    batch: int
    steps: int
    device: str = "cpu"


class Method(Protocol):
    """A training that can be stepped."""

    def step(self, x: Tensor) -> None: ...

    def reconstruct(self, x: Tensor) -> Tensor: ...


def rows(size: Size, seed: int) -> Iterator[Tensor]:
    """Batches with 32 of 4 x d_model sparse features on, of unequal frequency, round a mean; equal in any process."""
    generator = torch.Generator().manual_seed(0)
    features = 4 * size.d_model
    dictionary = F.normalize(torch.randn(features, size.d_model, generator=generator), dim=1)
    mean = torch.randn(size.d_model, generator=generator)
    frequency = 1 / torch.arange(1, features + 1).double().sqrt()
    below = (frequency / frequency.sum()).cumsum(0)
    generator.manual_seed(seed)
    while True:
        drawn = torch.rand(size.batch, ACTIVE_FEATURES, generator=generator, dtype=torch.float64)
        on = torch.searchsorted(below, drawn).clamp_max(features - 1)
        strength = 0.5 + torch.rand(on.shape, generator=generator)
        yield F.embedding_bag(on, dictionary, mode="sum", per_sample_weights=strength).add_(mean).to(size.device)


class Dense:
    """The floor that ratios refer to: the five products of a dense autoencoder's step, and nothing else."""

    def __init__(self, size: Size) -> None:
        self._w = torch.randn(size.latents, size.d_model, device=size.device)
        self._latents = torch.randn(size.batch, size.latents, device=size.device)

    def step(self, x: Tensor) -> None:
        torch.mm(x, self._w.T, out=self._latents)
        torch.mm(self._latents, self._w)
        torch.mm(x, self._w.T, out=self._latents)
        torch.mm(self._latents.T, x)
        torch.mm(self._latents.T, x)

    def reconstruct(self, x: Tensor) -> Tensor:
        return x


class Ours:
    """Our engine, with AuxK, gradient clipping and unit-norm decoder rows."""

    def __init__(self, size: Size, sample: Tensor, **changes: Any) -> None:
        from sae.training.config import TrainConfig
        from sae.training.engine import Normalisation, Trainer

        named = {"latents": size.latents, "k": size.k, "batch": size.batch, "steps": size.steps, "lr": LR}
        config = TrainConfig.model_validate(named | {"dead_after": 20 * size.batch, "decay": 0.0} | changes)
        self._trainer = Trainer(Normalisation.of(sample), config, torch.device(size.device))
        self._steps = 0

    def step(self, x: Tensor) -> None:
        self._trainer.step(x, self._steps)
        self._steps += 1

    def reconstruct(self, x: Tensor) -> Tensor:
        from sae.training.export import to_sae_lens

        trainer = self._trainer
        return to_sae_lens(trainer.weights, trainer.normalisation, trainer.config, x)(x)


class SAELens:
    """sae-lens's TopK SAE and trainer."""

    def __init__(self, size: Size, sample: Tensor, sparse: bool) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        # Its sparse activations fail in backward with its default rescaling by the decoder's norm.
        fast = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if sparse else {}
        shape: dict[str, Any] = {"d_in": size.d_model, "d_sae": size.latents, "k": size.k, "device": size.device}
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**shape, normalize_activations="expected_average_only_in", **fast))
        samples = size.batch * size.steps
        config = SAETrainerConfig(
            total_training_samples=samples,
            train_batch_size_samples=size.batch,
            lr=LR,
            lr_end=LR,
            device=size.device,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self._trainer = SAETrainer(config, sae, iter(()))
        self._trainer.activation_scaler.scaling_factor = math.sqrt(size.d_model) / sample.norm(dim=1).mean().item()

    def step(self, x: Tensor) -> None:
        self._trainer.step(x)
        self._trainer.n_training_steps += 1

    def reconstruct(self, x: Tensor) -> Tensor:
        scaler = self._trainer.activation_scaler
        return scaler.unscale(self._trainer.sae(scaler(x)))


class DictionaryLearning:
    """dictionary_learning's TopK trainer (its AuxK waits for 10 million tokens)."""

    def __init__(self, size: Size, sample: Tensor) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

        shape = {"activation_dim": size.d_model, "dict_size": size.latents, "k": size.k}
        settings = {"layer": 0, "lm_name": "none", "lr": LR, "warmup_steps": 0, "device": size.device, "seed": 0}
        self._trainer, self._steps = TopKTrainer(steps=size.steps, **shape, **settings), 0

    def step(self, x: Tensor) -> None:
        self._trainer.update(self._steps, x)
        self._steps += 1

    def reconstruct(self, x: Tensor) -> Tensor:
        return self._trainer.ae(x)


class Sparsify:
    """sparsify's SparseCoder, stepped as its trainer does with Adam."""

    def __init__(self, size: Size, sample: Tensor) -> None:
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

        config = SparseCoderConfig(num_latents=size.latents, k=size.k)
        self._sae = SparseCoder(size.d_model, config, device=size.device, dtype=torch.float32)
        self._sae.b_dec.data = sample.mean(0)
        self._optimizer = torch.optim.Adam(self._sae.parameters(), lr=LR)
        self._idle = torch.zeros(size.latents, dtype=torch.int64, device=size.device)
        self._size = size

    def step(self, x: Tensor) -> None:
        out = self._sae(x, dead_mask=self._idle > 20 * self._size.batch)
        (out.fvu + out.auxk_loss / 32).backward()
        torch.nn.utils.clip_grad_norm_(self._sae.parameters(), 1.0)
        self._sae.remove_gradient_parallel_to_decoder_directions()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._sae.set_decoder_norm_to_unit_norm()
        self._idle += len(x)
        self._idle[out.latent_indices.flatten()] = 0

    def reconstruct(self, x: Tensor) -> Tensor:
        return self._sae(x).sae_out


METHODS: dict[str, Callable[[Size, Tensor], Method]] = {
    "bound: five dense products": lambda size, _: Dense(size),
    "ours": Ours,
    "ours, bf16 encode": lambda size, sample: Ours(size, sample, encode_dtype="bfloat16"),
    "ours, batchtopk": lambda size, sample: Ours(size, sample, architecture="batchtopk"),
    "sae-lens": lambda size, sample: SAELens(size, sample, sparse=False),
    "sae-lens, sparse activations": lambda size, sample: SAELens(size, sample, sparse=True),
    "dictionary_learning": DictionaryLearning,
    "sparsify": Sparsify,
}


def peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(method: Method, batches: Iterator[Tensor], steps: int, device: str) -> float:
    """Seconds of `steps` steps, the making of data left out."""
    seconds = 0.0
    for _ in range(steps):
        x = next(batches)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        method.step(x)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    return seconds


def main() -> None:
    size = Size(**json.loads(sys.argv[2]))
    torch.manual_seed(0)
    before = peak_mb(size.device)
    method = METHODS[sys.argv[1]](size, next(rows(size, seed=1)))
    batches = rows(size, seed=2)
    for line in sys.stdin:
        steps = json.loads(line)
        if steps:
            answer = {
                "seconds": train(method, batches, steps, size.device),
                "peak_mb": peak_mb(size.device) - before,
            }
        else:
            with torch.no_grad():
                x = next(rows(size, seed=3))
                error = (method.reconstruct(x) - x).double().square().sum() / (x - x.mean(0)).double().square().sum()
            answer = {"fvu": error.item()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
