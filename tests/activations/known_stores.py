"""Stores whose rows are known, written shard by shard without a model, and processes to write them in."""

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations.artefact import CONFIG as CONFIG_FILE
from activations.artefact import PROVENANCE
from activations.config import StoreDtype
from activations.prompts import Role
from activations.source import Index
from activations.store import ActivationStore, StoreWriter
from activations.tokens import TokenBatch, add_hashes

HOOKS = {"blocks.0.hook_resid_post": 6, "blocks.1.hook_resid_post": 4}
HOOK = "blocks.0.hook_resid_post"
CONFIG = {"checkpoint": "abc", "model_dtype": "float32", "model": "runs/base"}
SHARDS = 8
LENGTHS = (400, 300)  # of the two prompts in a shard
ROWS = SHARDS * sum(LENGTHS)


@dataclass(frozen=True)
class KnownShard:
    """What a shard holds; its prompts are not in the order of their numbers, as in a harvest."""

    number: int
    prompts: dict[int, str]
    batch: TokenBatch
    index: Index
    activations: dict[str, Tensor]

    def write(self, writer: StoreWriter) -> None:
        writer.write(self.number, self.activations, self.index, self.prompts, self.batch.hash)


def known_shard(number: int, prefix: str = "p") -> KnownShard:
    """Two prompts; the first position of each is special, the last its last prompt token."""
    generator = torch.Generator().manual_seed(1000 * ord(prefix[0]) + number)
    numbers = (2 * number + 1, 2 * number)
    tokens = tuple(np.arange(n, dtype=np.int32) + 1000 * i for i, n in zip(numbers, LENGTHS, strict=True))
    roles = tuple(np.full(n, Role.PROMPT, dtype=np.uint8) for n in LENGTHS)
    for role in roles:
        role[0], role[-1] = Role.SPECIAL, Role.LAST_PROMPT
    prompts = {i: f"{prefix}{i}" for i in numbers}
    index = {
        "token": np.concatenate(tokens),
        "prompt": np.repeat(np.array(numbers), LENGTHS),
        "position": np.concatenate([np.arange(n) for n in LENGTHS]),
        "role": np.concatenate(roles),
    }
    rows = {hook: torch.randn(sum(LENGTHS), d_model, generator=generator) for hook, d_model in HOOKS.items()}
    return KnownShard(number, prompts, TokenBatch(tuple(prompts.values()), tokens, roles), index, rows)


def write(
    folder: Path,
    shards: int = SHARDS,
    dtype: StoreDtype = "float32",
    rank: int = 0,
    ranks: int = 1,
    config: Mapping[str, Any] = CONFIG,
    prefix: str = "p",
    before: Callable[[int], None] = lambda number: None,
) -> bool:
    """One writer's share of a store, or what is left of it; `before` is told each shard that is about to be written.

    Returns:
        Whether the store is whole.
    """
    if (folder / CONFIG_FILE).exists():
        return True
    with StoreWriter(folder, HOOKS, dtype, config, rank, ranks) as writer:
        for number in range(rank, shards, ranks):
            known = known_shard(number, prefix)
            if not writer.holds(number, known.batch.hash):
                before(number)
                known.write(writer)
        return writer.close(shards, known_hash(shards, prefix))


def known_hash(shards: int = SHARDS, prefix: str = "p") -> str:
    """Hash of the prompts of all shards."""
    return add_hashes(known_shard(number, prefix).batch.hash for number in range(shards))


def known_store(
    folder: Path, shards: int = SHARDS, dtype: StoreDtype = "float32", prefix: str = "p", **config: Any
) -> ActivationStore:
    """A finished store; `config` changes what it says about its making."""
    assert write(folder, shards, dtype, config={**CONFIG, **config}, prefix=prefix)
    return ActivationStore.load(folder)


def known_rows(hook: str = HOOK, shards: int = SHARDS, prefix: str = "p") -> Tensor:
    """All activations in row order."""
    return torch.cat([known_shard(number, prefix).activations[hook] for number in range(shards)])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a folder holds, hidden ones too, but for the provenance, which tells the time."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != PROVENANCE}


def start(function: Callable[..., object], *arguments: Any, **options: Any) -> BaseProcess:
    """Runs a function in a process of its own; forked, so that what a test has patched is patched there as well."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments, kwargs=options)
    process.start()
    return process


def run(function: Callable[..., object], *arguments: Any, **options: Any) -> int | None:
    """As `start`, to the end.

    Returns:
        Its exit code, negative for the signal that ended it.
    """
    process = start(function, *arguments, **options)
    process.join()
    return process.exitcode
