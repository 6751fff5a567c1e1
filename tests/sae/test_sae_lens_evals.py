"""The same SAE, model and tokens through sae-lens's own `run_evals`: what both measure must be the same numbers."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import LiveActivations
from activations.prompts import Role
from activations.tokens import TokenBatch
from sae.evaluate import DENSE, SAEMetrics, evaluate_sae

HOOK = "blocks.0.hook_resid_post"
PROMPTS, LENGTH, BATCH = 24, 16, 8
TINY_SPECIAL, TINY_WORDS = (1, 2), range(4, 19)
# Our name -> group and name of theirs. sae-lens adds float32 numbers: the last digits may differ.
SAME = {
    "explained_variance": ("reconstruction_quality", "explained_variance"),
    "cosine": ("reconstruction_quality", "cossim"),
    "l2_ratio": ("shrinkage", "l2_ratio"),
    "l0": ("sparsity", "l0"),
    "l1": ("sparsity", "l1"),
    "ce_clean": ("model_performance_preservation", "ce_loss_without_sae"),
    "ce_spliced": ("model_performance_preservation", "ce_loss_with_sae"),
    "ce_zero": ("model_performance_preservation", "ce_loss_with_ablation"),
    "ce_recovered": ("model_performance_preservation", "ce_loss_score"),
    "kl_spliced": ("model_behavior_preservation", "kl_div_with_sae"),
    "kl_zero": ("model_behavior_preservation", "kl_div_with_ablation"),
    "kl_recovered": ("model_behavior_preservation", "kl_div_score"),
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Measured:
    """What both made of the same tokens."""

    ours: SAEMetrics
    theirs: dict[str, Any]
    density: np.ndarray


def measure(checkpoint: Checkpoint, tokens: np.ndarray, special: tuple[int, ...]) -> Measured:
    """Evaluates one SAE on prompts of one length [prompt, pos]; `special` are the ids that both leave out."""
    roles = np.where(np.isin(tokens, special), Role.SPECIAL, Role.PROMPT).astype(np.uint8)
    batch = TokenBatch(tuple(f"p{i}" for i in range(len(tokens))), tuple(tokens), tuple(roles))
    source = LiveActivations(checkpoint, batch, HarvestConfig(hooks=(HOOK,)))
    sae = fair_sae(source)
    ours = evaluate_sae(sae, checkpoint, source, batch, HOOK, progress=False)
    data = Dataset.from_dict({"input_ids": tokens.tolist()})
    model: Any = checkpoint.bridge  # sae-lens's annotation does not know bridges
    store = ActivationsStore.from_sae(model, sae, data, streaming=False, store_batch_size_prompts=BATCH, total_tokens=1)
    steps = len(tokens) // BATCH
    everything = get_eval_everything_config(BATCH, steps, steps)
    theirs, of_latents = run_evals(
        sae, store, model, ActivationScaler(), everything, exclude_special_tokens=special or False
    )
    return Measured(ours, theirs, np.array(of_latents["feature_density"]))


def fair_sae(source: LiveActivations) -> SAE:
    """Not trained, but it explains something: latents are centred rows themselves, shortened."""
    rows = source.read(HOOK)
    mean = rows.mean(0)
    directions = torch.nn.functional.normalize(rows[:64] - mean, dim=1)
    sae = TopKSAE(TopKSAEConfig(d_in=rows.shape[1], d_sae=64, k=4))
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(0.5 * directions.T)
        sae.b_dec.copy_(mean)
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.context_size = LENGTH
    sae.cfg.metadata.prepend_bos = True
    return sae.eval().requires_grad_(False)


def tiny_tokens(with_special: bool) -> np.ndarray:
    """BOS in front and EOS here and there, or neither."""
    draw = np.random.default_rng(0)
    tokens = draw.choice(TINY_WORDS, (PROMPTS, LENGTH)).astype(np.int32)
    if with_special:
        tokens[draw.random(tokens.shape) < 0.1] = 2
        tokens[:, 0] = 1
    return tokens


@pytest.fixture(scope="module", params=["special", "ordinary", "public"])
def measured(request: pytest.FixtureRequest, base: Checkpoint) -> Measured:
    if request.param != "public":
        with_special = request.param == "special"
        return measure(base, tiny_tokens(with_special), TINY_SPECIAL if with_special else ())
    public = load_checkpoint(CheckpointConfig(model=str(request.getfixturevalue("public_folder"))), "base")
    return measure(public, story_tokens(public), tuple(public.tokenizer.all_special_ids))


def story_tokens(checkpoint: Checkpoint) -> np.ndarray:
    """What the public model itself writes after its first special token."""
    start = torch.full((PROMPTS, 1), checkpoint.tokenizer.all_special_ids[0])
    torch.manual_seed(0)
    with torch.no_grad():
        while start.shape[1] < LENGTH:
            logits = cast(torch.Tensor, checkpoint.forward(start, torch.ones_like(start)).logits)
            start = torch.cat([start, torch.multinomial(logits[:, -1].softmax(-1), 1)], dim=1)
    return start.numpy().astype(np.int32)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SAME)
def test_same_number(measured: Measured, name: str) -> None:
    """Breaks if a formula, the tokens that count, or the positions that are replaced differ from sae-lens's."""
    group, theirs = SAME[name]
    print("REL", name, getattr(measured.ours, name), getattr(measured.ours, name) / measured.theirs[group][theirs] - 1)
    assert getattr(measured.ours, name) == pytest.approx(measured.theirs[group][theirs], rel=TOLERANCE)


def test_same_density(measured: Measured) -> None:
    """Breaks if a latent is active on another share of the rows than sae-lens finds."""
    alive = measured.density[measured.density > 0]
    assert measured.ours.dead_fraction == pytest.approx(1 - len(alive) / len(measured.density))
    assert measured.ours.dense_fraction == pytest.approx((measured.density > DENSE).mean())
    assert measured.ours.density == np.histogram(np.log10(alive), 12, (-6, 0))[0].tolist()


def test_the_case_is_not_trivial(measured: Measured) -> None:
    """Breaks if the numbers agree only because the SAE is perfect or useless."""
    assert 0.1 < measured.ours.explained_variance < 0.9
    assert measured.ours.l0 < 4.001
    assert 0.05 < measured.ours.kl_recovered < 0.95
    assert measured.ours.ce_mean != measured.ours.ce_zero
