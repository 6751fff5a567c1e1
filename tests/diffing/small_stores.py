"""Small real stores and a tiny real SAE for the tests of ranking and directions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from activations.harvesting import PlannedShard
from activations.prompts import Role
from activations.store import ActivationStore, StoreWriter
from activations.tokens import TokenBatch

HOOK = "blocks.0.hook_resid_post"
D_MODEL, LATENTS, K = 8, 24, 3


def tiny_sae(seed: int = 0, dtype: str = "float64") -> TopKSAE:
    """A TopK SAE with random weights and unit decoder rows; float64, so that sums can be compared exactly."""
    sae = TopKSAE(TopKSAEConfig(d_in=D_MODEL, d_sae=LATENTS, k=K, dtype=dtype, device="cpu"))
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn(LATENTS, D_MODEL, generator=generator, dtype=torch.float64)
    decoder /= decoder.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(decoder.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def ragged_batch(prompts: int, seed: int = 0, prefix: str = "p") -> TokenBatch:
    """Prompts of various lengths: special, 3-8 prompt tokens (the last tagged), 0-3 answer tokens, special."""
    generator = np.random.default_rng(seed)
    tokens, roles = [], []
    for _ in range(prompts):
        inner = [Role.PROMPT] * int(generator.integers(2, 8)) + [Role.LAST_PROMPT]
        answer = [Role.ANSWER] * int(generator.integers(0, 4))
        row = np.array([Role.SPECIAL, *inner, *answer, Role.SPECIAL], dtype=np.uint8)
        roles.append(row)
        tokens.append(generator.integers(10, 60, len(row)).astype(np.int32))
    return TokenBatch(tuple(f"{prefix}{i}" for i in range(prompts)), tuple(tokens), tuple(roles))


def random_activations(batch: TokenBatch, seed: int) -> list[Float[Tensor, "pos d_model"]]:
    """Gaussian activations for every position of every prompt."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(tokens), D_MODEL, generator=generator) for tokens in batch.tokens]


def write_store(
    folder: Path, batch: TokenBatch, activations: Sequence[Float[Tensor, "pos d_model"]], prompts_a_shard: int = 3
) -> ActivationStore:
    """A real store of several shards, each with a few prompts."""
    starts = range(0, len(batch), prompts_a_shard)
    with StoreWriter(folder, {HOOK: D_MODEL}, "float32", {"model": folder.name}) as writer:
        for number, start in enumerate(starts):
            chosen = range(start, min(start + prompts_a_shard, len(batch)))
            shard = PlannedShard(number, (batch.select(chosen),), (tuple(chosen),))
            rows = {HOOK: torch.cat([activations[i] for i in chosen])}
            writer.write(number, rows, shard.index, shard.ids, shard.hash)
        writer.close(len(starts), batch.hash)
    return ActivationStore.load(folder)
