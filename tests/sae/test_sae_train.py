from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from sae_lens import SAE
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations, harvest
from activations.memory import InMemory
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from sae.training.config import TrainConfig
from sae.training.engine import (
    DeadLatents,
    Normalisation,
    Trainer,
    Weights,
    aux_error,
    aux_target,
    geometric_median,
    initial_weights,
    learning_rate,
    sae_losses,
)
from sae.training.export import to_sae_lens
from sae.training.setup import TrainingSetup
from sae.training.sources import TrainingData
from sae.training.train import Job, train_sae, train_saes


def fvu(sae: SAE, rows: Tensor) -> float:
    """The definition, in one line of float64."""
    with torch.no_grad():
        error = rows.double() - sae(rows).double()
    return (error.square().sum() / (rows.double() - rows.double().mean(0)).square().sum()).item()


HOOK = "blocks.0.hook_resid_post"
SMALL = TrainConfig(latents=128, k=4, batch=512, steps=400, lr=4e-3, dead_after=10_000)


def data_of(rows: Tensor, seed: int = 0) -> TrainingData:
    return TrainingData({"base": InMemory.of_rows({HOOK: rows})}, seed)


def test_training_finds_the_structure(sparse_data: Tensor) -> None:
    logged: list[dict[str, float]] = []
    sae = train_sae(
        data_of(sparse_data), HOOK, SMALL, TrainingSetup(log=lambda _, metrics: logged.append(metrics), progress=False)
    )
    assert logged[-1]["step"] == SMALL.steps - 1
    assert logged[-1]["loss"] < 0.2 * logged[0]["loss"]
    # Raw activations in, raw reconstruction out, in sae-lens's own class.
    assert sae.cfg.normalize_activations == "none"
    assert fvu(sae, sparse_data) < 0.1
    assert fvu(sae, sparse_data) == pytest.approx(logged[-1]["fvu"], rel=0.2)
    latents = sae.encode(sparse_data)
    assert (latents > 0).sum(1).float().mean().item() == pytest.approx(4, abs=0.1)
    assert (latents > 0).any(0).logical_not().float().mean().item() <= 0.02
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(128))
    assert all(metrics["tokens_per_second"] > 0 and metrics["gradient_norm"] > 0 for metrics in logged)


def test_batch_topk_saves_what_was_trained(sparse_data: Tensor) -> None:
    """Breaks if the threshold drifts (sae-lens's running mean does), or the scale is not folded into it."""
    logged: list[dict[str, float]] = []
    config = SMALL.model_copy(update={"architecture": "batchtopk"})
    sae = train_sae(
        data_of(sparse_data), HOOK, config, TrainingSetup(log=lambda _, metrics: logged.append(metrics), progress=False)
    )
    assert sae.cfg.architecture() == "jumprelu"
    latents = sae.encode(sparse_data)
    each = (latents > 0).sum(1).double()
    assert each.mean().item() == pytest.approx(4, rel=0.02)
    assert each.std().item() > 0.3
    assert fvu(sae, sparse_data) == pytest.approx(logged[-1]["fvu"], rel=0.1)
    # The same rows through BatchTopK itself, in one batch as large as the sample.
    state = sae.state_dict()
    pre = ((sparse_data - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    chosen = pre.flatten().topk(4 * len(sparse_data)).indices
    trained = torch.zeros_like(pre).flatten().scatter(0, chosen, pre.flatten()[chosen]).view_as(pre)
    assert ((trained > 0) == (latents > 0)).double().mean().item() > 0.9999


def test_same_seed_same_weights(sparse_data: Tensor) -> None:
    config = SMALL.model_copy(update={"steps": 30, "dead_after": 2000})

    def train(seed: int) -> dict[str, Tensor]:
        changed = config.model_copy(update={"seed": seed})
        return train_sae(data_of(sparse_data), HOOK, changed, TrainingSetup(progress=False)).state_dict()

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_dec"], other["W_dec"])


def test_folding_gives_the_trained_function_on_raw_activations(sparse_data: Tensor) -> None:
    normalisation = Normalisation.of(sparse_data)
    x = normalisation.apply(sparse_data[:200])
    assert x.square().mean().item() == pytest.approx(1, rel=0.05)
    weights = initial_weights(x.shape[1], SMALL, x.device)
    with torch.no_grad():
        for bias in (weights.b_enc, weights.b_dec):
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(3)))
        sae = to_sae_lens(weights, normalisation, SMALL, sparse_data)
        latents = weights.encode(x, SMALL).dense()
        raw = (latents @ weights.w_dec + weights.b_dec) / normalisation.scale + normalisation.mean
        torch.testing.assert_close(sae.encode(sparse_data[:200]), latents / normalisation.scale, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(sae(sparse_data[:200]), raw, rtol=1e-3, atol=1e-2)


def test_geometric_median_minimises_distances_and_ignores_outliers() -> None:
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:20] += 1000
    median = geometric_median(rows)
    assert median.norm() < 0.5 < rows.mean(0).norm()
    for direction in torch.eye(6, dtype=torch.float64):
        for step in (-0.01, 0.01):
            assert (rows - median).norm(dim=1).sum() < (rows - median - step * direction).norm(dim=1).sum()
    torch.testing.assert_close(Normalisation.of(rows, "geometric_median").mean.double(), median, rtol=1e-5, atol=1e-6)


def test_several_saes_in_one_pass_are_those_trained_alone(sparse_data: Tensor) -> None:
    """Breaks if SAEs that share batches change one another."""
    data = TrainingData({"base": InMemory.of_rows({HOOK: sparse_data, "other": sparse_data.flip(1)})})
    config = SMALL.model_copy(update={"steps": 25})
    jobs = {
        "narrow": Job(HOOK, config),
        "wide": Job(HOOK, config.model_copy(update={"latents": 256, "k": 2})),
        "seed": Job(HOOK, config.model_copy(update={"seed": 5, "architecture": "batchtopk"})),
        "layer": Job("other", config),
    }
    together = train_saes(data, jobs, TrainingSetup(progress=False))
    for name, job in jobs.items():
        alone = train_sae(data, job.hook, job.config, TrainingSetup(progress=False)).state_dict()
        assert all(torch.equal(together[name].state_dict()[key], alone[key]) for key in alone), name
    with pytest.raises(UserError, match="equal batch and steps"):
        train_saes(data, {**jobs, "longer": Job(HOOK, SMALL)}, TrainingSetup(progress=False))


def random_weights(dtype: torch.dtype = torch.float64) -> tuple[Weights, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(40, 12), (40,), (40, 12), (12,)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return Weights(*tensors), torch.randn(25, 12, generator=generator, dtype=dtype)


def gradients(loss: Tensor, weights: Weights) -> list[Tensor]:
    return list(torch.autograd.grad(loss, weights.tensors(), allow_unused=False))


def test_losses_and_their_gradients_equal_dense_float64() -> None:
    weights, x = random_weights()
    config = TrainConfig(latents=40, k=4, aux_k=3, aux_coefficient=0.5)
    dead = torch.tensor([1, 5, 8, 13, 21, 34])
    losses = sae_losses(weights, x, dead, config)

    pre = (x - weights.b_dec) @ weights.w_enc.T + weights.b_enc
    top = pre.topk(4, dim=1)
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    main = (x - weights.b_dec - latents @ weights.w_dec).square().mean()
    # topk is sorted: the first two of four are the stronger half.
    stronger = torch.zeros_like(pre).scatter(1, top.indices[:, :2], top.values[:, :2].relu())
    target = (x - weights.b_dec - stronger @ weights.w_dec).detach()
    top_dead = pre[:, dead].topk(3, dim=1)
    explained = torch.zeros(25, 6, dtype=x.dtype).scatter(1, top_dead.indices, top_dead.values.relu())
    aux = (explained @ weights.w_dec[dead] - target).square().sum() / target.square().sum()

    torch.testing.assert_close(losses.reconstruction, main)
    torch.testing.assert_close(losses.aux, aux)
    torch.testing.assert_close(losses.total, main + 0.5 * aux)
    for ours, reference in zip(gradients(losses.total, weights), gradients(main + 0.5 * aux, weights), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


def test_aux_reaches_dead_latents_only_and_both_their_weights() -> None:
    weights, x = random_weights()
    dead = torch.tensor([3, 4])
    target = aux_target(weights, x, weights.encode(x, TrainConfig(latents=40, k=4)))
    assert not target.requires_grad
    loss = aux_error(weights, x, target, dead, aux_k=16)
    w_enc, b_enc, w_dec, _ = gradients(loss, weights)
    for gradient in (w_enc, b_enc, w_dec):
        touched = gradient.reshape(40, -1).abs().sum(1).nonzero().squeeze(1)
        assert touched.tolist() == [3, 4]


def test_aux_revives_latents_that_start_dead(sparse_data: Tensor) -> None:
    def dead_at_end(aux_k: int) -> float:
        config = SMALL.model_copy(update={"aux_k": aux_k, "steps": 100})
        normalisation = Normalisation.of(sparse_data)
        weights = initial_weights(sparse_data.shape[1], config, sparse_data.device)
        with torch.no_grad():
            weights.b_enc[:40] = -5.0
        dead = DeadLatents(config.latents, 5_000, torch.device("cpu"))
        optimizer = torch.optim.Adam(weights.tensors(), lr=4e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(config.steps):
            x = normalisation.apply(sparse_data[torch.randint(len(sparse_data), (512,), generator=generator)])
            losses = sae_losses(weights, x, dead.indices, config)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            dead.update(losses.active.fired(), len(x))
        return dead.mask.double().mean().item()

    without = dead_at_end(aux_k=0)
    assert without > 0.2
    assert dead_at_end(aux_k=16) < without / 2


def test_no_dead_latents_no_aux() -> None:
    weights, x = random_weights()
    losses = sae_losses(weights, x, torch.tensor([], dtype=torch.int64), TrainConfig(latents=40, k=4))
    assert losses.aux.item() == 0
    assert torch.equal(losses.total, losses.reconstruction)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(latents=8, lr=1.0, steps=100, warmup=0.1, decay=0.5)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_constant_or_broken_sample(sparse_data: Tensor) -> None:
    with pytest.raises(UserError, match="constant or hold NaN"):
        Normalisation.of(torch.ones(10, 4))
    broken = sparse_data[:100].clone()
    broken[7, 3] = float("nan")
    with pytest.raises(UserError, match="variance nan"):
        Normalisation.of(broken)


def test_broken_batch_stops_the_training(sparse_data: Tensor) -> None:
    trainer = Trainer(Normalisation.of(sparse_data), SMALL, torch.device("cpu"))
    seen = trainer.step(torch.full((512, sparse_data.shape[1]), float("inf")), step=0)
    with pytest.raises(UserError, match="at step 0"):
        trainer.metrics(seen, step=0)


def test_config_is_strict() -> None:
    with pytest.raises(ValidationError, match="latent_count"):
        TrainConfig.model_validate({"latents": 8, "latent_count": 9})
    with pytest.raises(UserError, match="k=8 of 4 latents"):
        train_sae(data_of(torch.randn(4, 4)), HOOK, TrainConfig(latents=4, batch=2), TrainingSetup(progress=False))


def test_training_straight_from_a_model_equals_training_from_its_store(base: Checkpoint, tmp_path: Path) -> None:
    """Breaks if batches are formed otherwise without a store, or values skip the rounding to its number format."""
    prompts = [Prompt.plain(f"p{i}", "how do i treat a burn ? " * (1 + i % 5)) for i in range(60)]
    tokens = tokenize_prompts(prompts, base.tokenizer)
    settings = HarvestConfig(hooks=("blocks.1.hook_resid_post",), dtype="bfloat16", batch_tokens=64, shard_rows=200)
    sources = [harvest(base, tokens, settings, tmp_path / "store", False), LiveActivations(base, tokens, settings)]
    sources.append(InMemory.copy_of(sources[0], progress=False))
    config = TrainConfig(latents=64, k=4, batch=32, steps=60)
    trained = [
        train_sae(TrainingData({"base": source}, seed=1), settings.hooks[0], config, TrainingSetup(progress=False))
        for source in sources
    ]
    first, *others = (sae.state_dict() for sae in trained)
    for name, weights in first.items():
        assert all(torch.equal(weights, other[name]) for other in others), name


def test_mixed_batches_hold_the_stated_shares(sparse_data: Tensor) -> None:
    """Breaks if a share is rounded away, a source is read out of step, or a start is not where it should be."""
    sources = {"base": InMemory.of_rows({HOOK: sparse_data}), "corrupted": InMemory.of_rows({HOOK: sparse_data + 1e4})}
    data = TrainingData(sources, seed=3, shares={"base": 0.7, "corrupted": 0.3})
    batches = [batch.clone() for batch in islice(data.batches(HOOK, 50), 5)]
    for batch in batches:
        assert len(batch) == 50
        assert (batch.mean(1) < 1e3).sum() == 35
    assert torch.equal(next(data.batches(HOOK, 50, start=3)), batches[3])
    assert len(data.sample(HOOK, 1000)) == 1000
    with pytest.raises(UserError, match="none of base"):
        next(TrainingData(sources, shares={"base": 0.001, "corrupted": 0.999}).batches(HOOK, 50))
    with pytest.raises(UserError, match="do not fit the sources"):
        TrainingData(sources, shares={"base": 0.5, "corrupted": 0.6})
