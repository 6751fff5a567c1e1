"""Speed of encoding and ranking two models' stored activations, relative to two bare encode products.

    python -m benchmarks.ranking

The stores are on disk and warm; ours reads them, encodes them and accumulates every ranking method with bootstrap and
sign flips. The peer encodes the same rows with sae-lens and accumulates dense means, as a script of an afternoon would.
"""

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from activations.harvesting import PlannedShard
from activations.prompts import Role
from activations.store import ActivationStore
from activations.store.writer import StoreWriter
from activations.tokens import TokenBatch
from benchmarks.measure import Target, interleave, print_result, print_table
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents

HOOK = "blocks.0.hook_resid_post"
TOKENS_A_PROMPT = 100
PROMPTS_A_SHARD = 256


def make_store(folder: Path, tokens: int, d_model: int, seed: int) -> ActivationStore:
    """Random activations of prompts of 100 tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompts = tokens // TOKENS_A_PROMPT
    roles = np.full(TOKENS_A_PROMPT, Role.PROMPT, dtype=np.uint8)
    roles[0], roles[-30], roles[-29:] = Role.SPECIAL, Role.LAST_PROMPT, Role.ANSWER
    token = np.zeros(TOKENS_A_PROMPT, dtype=np.int32)
    names = [f"p{i}" for i in range(prompts)]
    batch = TokenBatch(tuple(names), (token,) * prompts, (roles,) * prompts)
    starts = range(0, prompts, PROMPTS_A_SHARD)
    with StoreWriter(folder, {HOOK: d_model}, "float32", {"model": folder.name}) as writer:
        for number, start in enumerate(starts):
            chosen = tuple(range(start, min(start + PROMPTS_A_SHARD, prompts)))
            shard = PlannedShard(number, (batch.select(chosen),), (chosen,))
            rows = {HOOK: torch.randn(len(chosen) * TOKENS_A_PROMPT, d_model, generator=generator)}
            writer.write(number, rows, shard.index, shard.ids, shard.hash)
        writer.close(len(starts), batch.hash)
    return ActivationStore.load(folder)


def make_sae(kind: str, d_model: int, latents: int, k: int) -> SAE:
    """Random weights; a threshold that lets about k latents through."""
    generator = torch.Generator().manual_seed(0)
    shape: dict[str, Any] = {"d_in": d_model, "d_sae": latents, "device": "cpu", "dtype": "float32"}
    sae: SAE = TopKSAE(TopKSAEConfig(k=k, **shape)) if kind == "topk" else JumpReLUSAE(JumpReLUSAEConfig(**shape))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_model, latents, generator=generator))
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_enc.T, dim=1))
        if kind != "topk":
            pre = torch.randn(512, d_model, generator=generator) @ sae.W_enc
            sae.threshold.fill_(pre.flatten().topk(512 * k).values.min().item())  # pyright: ignore[reportCallIssue]
    return sae.requires_grad_(False)


def bare_products(sae: SAE, stores: list[ActivationStore]) -> Callable[[], None]:
    """Two encode products, one for each model, of rows in memory."""
    rows = [store.shard(0, HOOK) for store in stores]
    repeats = sum(store.rows for store in stores) / sum(len(part) for part in rows)

    def run() -> None:
        for _ in range(round(repeats)):
            for part in rows:
                for block in part.split(4096):
                    torch.mm(block, sae.W_enc)

    return run


@torch.no_grad()
def sae_lens_dense(sae: SAE, stores: list[ActivationStore]) -> None:
    """Encoded by sae-lens, dense sums in float64 by prompt."""
    for store in stores:
        sums = torch.zeros(len(store.prompt_ids), sae.cfg.d_sae, dtype=torch.float64)
        for rows, index in store.chunks(HOOK):
            for start in range(0, len(rows), 1024):
                latents = sae.encode(rows[start : start + 1024])
                sums.index_add_(0, torch.from_numpy(index["prompt"][start : start + 1024]).long(), latents.double())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--latents", type=int, nargs="+", default=[8192, 131072])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=51200, help="Of each model, at the first width.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    targets: dict[str, Target] = {}
    rows = []
    for latents in arguments.latents:
        tokens = max(5120, arguments.tokens * arguments.latents[0] // latents)
        with tempfile.TemporaryDirectory() as folder:
            stores = [make_store(Path(folder) / role, tokens, arguments.d_model, s) for s, role in enumerate("ab")]
            for kind in ("topk", "jumprelu"):
                found = measure(make_sae(kind, arguments.d_model, latents, arguments.k), stores, arguments.rounds)
                name, bound = f"{kind} {latents}", found["bound: two bare products"]
                speeds = {method: stores[0].rows / seconds for method, seconds in found.items()}
                rows += [(name, method, speed, bound / found[method]) for method, speed in speeds.items()]
                results[name] = speeds
                targets[f"{name}: ours / two products"] = Target(bound / found["ours"], 0.65 if kind == "topk" else 0.8)
    print_table(("SAE", "", "pair-tokens/s", "of the bound"), rows)
    memory = {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print_result("ranking", {**results, "memory": memory}, targets)


def measure(sae: SAE, stores: list[ActivationStore], rounds: int) -> dict[str, float]:
    """Median seconds for all tokens of both models."""
    config = RankingConfig()
    return interleave(
        {
            "bound: two bare products": bare_products(sae, stores),
            "ours": lambda: rank_latents(sae, Compared(stores[0], stores[1]), HOOK, config),
            "sae-lens, dense means": lambda: sae_lens_dense(sae, stores),
        },
        rounds,
    )


if __name__ == "__main__":
    main()
