"""The harvest: activations of a checkpoint on given tokens, streamed into a store.

Prompts are put into batches of similar length, batches into shards, before anything runs: which rows a shard holds
depends on the prompts and the config alone, not on who computes it. So several processes can share a harvest, whoever
was stopped can go on, and `LiveActivations` computes the very rows that a store would hold.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm import tqdm

from activations.artefact import CONFIG
from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.device import require_device
from activations.errors import UserError
from activations.source import ActivationSource, Index
from activations.store import ActivationStore, StoreWriter
from activations.tokens import TokenBatch, TokenSource, add_hashes, length_buckets, pad


def batch_tokens_for(device: str) -> int:
    """Batches that suit a device: a GPU wants to be filled, a CPU wants activations that stay in its caches.

    Measured on 2 cores with a Llama of d_model 512: 0.75-0.94 of the bare matrix products at 512 tokens, 0.37-0.50 at
    4,096 and 0.19-0.26 at 16,384, where most of the time goes into making new memory ready.
    """
    require_device(device)
    return 512 if torch.device(device).type == "cpu" else 16384


@dataclass(frozen=True)
class Share:
    """The part of a harvest that one process has: every `ranks`-th shard, from the `rank`-th on."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class PlannedShard:
    """What a shard will hold.

    Attributes:
        number: Its place in the order of rows.
        batches: Prompts that go through the model together.
        prompts: Numbers of the prompts in the whole source, batch by batch.
    """

    number: int
    batches: tuple[TokenBatch, ...]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        return sum(batch.n_tokens for batch in self.batches)

    @cached_property
    def hash(self) -> str:
        """Hash of its prompts."""
        return add_hashes(batch.hash for batch in self.batches)

    @property
    def ids(self) -> dict[int, str]:
        """Id of each prompt, by its number."""
        pairs = zip(self.prompts, self.batches, strict=True)
        return {number: id for numbers, batch in pairs for number, id in zip(numbers, batch.ids, strict=True)}

    @cached_property
    def index(self) -> Index:
        """Token, prompt, position and role of each row."""
        tokens = [t for batch in self.batches for t in batch.tokens]
        numbers = [number for numbers in self.prompts for number in numbers]
        return {
            "token": np.concatenate(tokens),
            "prompt": np.repeat(np.array(numbers, dtype=np.int32), [len(t) for t in tokens]),
            "position": np.concatenate([np.arange(len(t), dtype=np.int32) for t in tokens]),
            "role": np.concatenate([r for batch in self.batches for r in batch.roles]),
        }


def plan_shards(source: TokenSource, config: HarvestConfig) -> Iterator[PlannedShard]:
    """The shards of a harvest, in order: batches of prompts of similar length until a shard has its rows."""
    number, first, rows = 0, 0, 0
    batches: list[TokenBatch] = []
    prompts: list[tuple[int, ...]] = []
    for window in source.windows():
        for chosen in length_buckets(window, config.batch_tokens):
            batches.append(window.select(chosen))
            prompts.append(tuple(first + i for i in chosen))
            rows += batches[-1].n_tokens
            if rows >= config.shard_rows:
                yield PlannedShard(number, tuple(batches), tuple(prompts))
                number, rows, batches, prompts = number + 1, 0, [], []
        first += len(window)
    if batches:
        yield PlannedShard(number, tuple(batches), tuple(prompts))


def harvest(
    checkpoint: Checkpoint, source: TokenSource, config: HarvestConfig, folder: Path, progress: bool = True
) -> ActivationStore:
    """Writes a checkpoint's activations on `source` to a store.

    Prompts of similar length share a batch, padded on the right; padding never reaches the store. The model stops after
    the last hook. A finished store of the same activations is used again, an unfinished one is finished. A shard is
    written while the next is computed.

    Args:
        checkpoint: Whose activations.
        source: On which tokens.
        config: At which hooks, and how to store them.
        folder: Of the store.
        progress: Whether to show a progress bar.

    Raises:
        UserError: for a hook that the model lacks or that does not give one vector a position; for NaN or infinite
            activations; for a folder that holds something else or that another process is writing to.
    """
    store = harvest_share(checkpoint, source, config, folder, progress=progress)
    assert store is not None, "a single writer has every shard"
    return store


def harvest_share(
    checkpoint: Checkpoint,
    source: TokenSource,
    config: HarvestConfig,
    folder: Path,
    share: Share = Share(),
    progress: bool = True,
) -> ActivationStore | None:
    """One process's share of a `harvest`, into a folder that all processes share.

    Returns:
        The store; None if other ranks are still at work (the last to finish declares it whole).

    Raises:
        UserError: as `harvest` does.
    """
    for hook in config.hooks:
        checkpoint.require_hook(hook)
    described = _describe(checkpoint, config)
    if (folder / CONFIG).exists():
        return _finished(folder, source, config, described)
    widths = _widths(checkpoint, config.hooks)
    known = source.n_tokens if isinstance(source, TokenBatch) else None
    bar = {"total": known, "unit": " tokens", "desc": f"harvest {checkpoint.role}", "unit_scale": True}
    with (
        StoreWriter(folder, widths, config.dtype, described, share.rank, share.ranks) as writer,
        tqdm(disable=not progress, leave=False, **bar) as progress_bar,
        _Behind() as behind,
    ):
        hashes: list[str] = []
        for shard in plan_shards(source, config):
            hashes.append(shard.hash)
            if shard.number % share.ranks == share.rank and not writer.holds(shard.number, shard.hash):
                rows = compute_shard(checkpoint, shard, config, progress_bar.update)
                behind.do(writer.write, shard.number, rows, shard.index, shard.ids, shard.hash)
            else:
                progress_bar.update(shard.rows)
        behind.wait()
        if not hashes:
            raise UserError("There are no prompts to harvest; give at least one.")
        return ActivationStore.load(folder) if writer.close(len(hashes), add_hashes(hashes)) else None


def compute_shard(
    checkpoint: Checkpoint, shard: PlannedShard, config: HarvestConfig, advance: Any = lambda tokens: None
) -> dict[str, Shaped[Tensor, "rows d_model"]]:
    """A shard's activations at every hook, in the store's number format, on the CPU.

    Raises:
        UserError: for NaN or infinite activations; for a hook that does not give one vector a position.
    """
    dtype = getattr(torch, config.dtype)
    parts: dict[str, list[Tensor]] = {hook: [] for hook in config.hooks}
    for batch in shard.batches:
        activations = _activations(checkpoint, batch.tokens, config.hooks)
        for hook, rows in activations.items():
            stored = rows.to(dtype)
            _require_finite(checkpoint, hook, rows, stored, batch)
            parts[hook].append(stored.cpu())
        advance(batch.n_tokens)
    return {hook: torch.cat(rows) for hook, rows in parts.items()}


class LiveActivations(ActivationSource):
    """Activations computed whenever they are read: no store, the same rows as through one, to the last bit on a CPU."""

    def __init__(self, checkpoint: Checkpoint, tokens: TokenBatch, config: HarvestConfig) -> None:
        """Plans the shards; nothing is computed yet.

        Args:
            checkpoint: Whose activations.
            tokens: On which tokens.
            config: At which hooks, and in which number format; its shards are what is computed at once.

        Raises:
            UserError: for a hook that the model lacks or that does not give one vector a position.
        """
        self.name = f"the {checkpoint.role} model {checkpoint.name}"
        self.prompt_ids = tokens.ids
        self._checkpoint, self._settings = checkpoint, config
        self._plan = list(plan_shards(tokens, config))
        self.config = {
            **_describe(checkpoint, config),
            "hooks": _widths(checkpoint, config.hooks),
            "dtype": config.dtype,
            "rows": tokens.n_tokens,
            "tokens_hash": tokens.hash,
        }

    @property
    def shards(self) -> int:
        return len(self._plan)

    def shard(self, number: int, hook: str) -> Shaped[Tensor, "rows d_model"]:
        self.d_model(hook)
        only = self._settings.model_copy(update={"hooks": (hook,)})
        return compute_shard(self._checkpoint, self._plan[number], only)[hook]

    def shard_index(self, number: int) -> Index:
        return self._plan[number].index


class _Behind:
    """Does one thing at a time in the background; the next waits for it, so at most two shards are in memory."""

    def __init__(self) -> None:
        self._pool, self._busy = ThreadPoolExecutor(1), None

    def do(self, function: Any, *arguments: Any) -> None:
        self.wait()
        self._busy: Future[None] | None = self._pool.submit(function, *arguments)

    def wait(self) -> None:
        """Raises what went wrong."""
        if self._busy is not None:
            self._busy.result()
            self._busy = None

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()


class _Harvested(Exception):
    """Every hook has fired; what the model would compute after it is not needed."""


def _describe(checkpoint: Checkpoint, config: HarvestConfig) -> dict[str, Any]:
    """What the store's config says about its making; all of it but the display name decides about its content."""
    return {
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "model_dtype": checkpoint.config.dtype,
        "processing": "none: raw weights and activations",
        "batch_tokens": config.batch_tokens,
        "shard_rows": config.shard_rows,
    }


def _finished(
    folder: Path, source: TokenSource, config: HarvestConfig, described: Mapping[str, Any]
) -> ActivationStore:
    """The finished store in `folder`, if it is the one that would be harvested."""
    store = ActivationStore.load(folder)
    tokens_hash = add_hashes(window.hash for window in source.windows())
    wanted = {**described, "dtype": config.dtype, "model": store.config.get("model"), "tokens_hash": tokens_hash}
    if store.hooks != config.hooks or any(store.config.get(key) != value for key, value in wanted.items()):
        raise UserError(f"{folder} holds other activations; choose another folder or --overwrite.")
    return store


def _widths(checkpoint: Checkpoint, hooks: Sequence[str]) -> dict[str, int]:
    """The width of each hook's activations, seen on one token."""
    activations = _activations(checkpoint, [np.zeros(1, dtype=np.int32)], hooks)
    return {hook: rows.shape[-1] for hook, rows in activations.items()}


@torch.inference_mode()
def _activations(
    checkpoint: Checkpoint, tokens: Sequence[np.ndarray], hooks: Collection[str]
) -> dict[str, Float[Tensor, "rows d_model"]]:
    """Activations at the real positions, prompt after prompt."""
    # Any id will do for padding: the mask hides it, and its rows are dropped.
    padded, mask = pad(tokens, pad_id=0)
    seen: dict[str, Tensor] = {}

    def collect(hook: str):
        def see(activation: Tensor) -> None:
            seen[hook] = activation
            if len(seen) == len(hooks):
                raise _Harvested

        return see

    try:
        with checkpoint.hooks({hook: collect(hook) for hook in hooks}):
            checkpoint.forward(padded, mask)
    except _Harvested:
        pass
    real = mask.bool().to(checkpoint.device)
    for hook in hooks:
        if hook not in seen or seen[hook].ndim != 3 or seen[hook].shape[:2] != real.shape:
            got = f"gives {tuple(seen[hook].shape)}" if hook in seen else "never fires"
            raise UserError(
                f"Hook '{hook}' of the {checkpoint.role} model {checkpoint.name} {got} instead of "
                "(batch, pos, d_model); choose one with a vector at every position, such as blocks.0.hook_resid_post."
            )
    return {hook: seen[hook][real] for hook in hooks}


def _require_finite(
    checkpoint: Checkpoint,
    hook: str,
    computed: Float[Tensor, "rows d_model"],
    stored: Float[Tensor, "rows d_model"],
    batch: TokenBatch,
) -> None:
    finite = stored.isfinite().all(-1)
    if finite.all():
        return
    row = int(finite.logical_not().nonzero()[0])
    ends = np.cumsum([len(tokens) for tokens in batch.tokens])
    prompt_id = batch.ids[int(np.searchsorted(ends, row, side="right"))]
    if computed[row].isfinite().all():
        what, remedy = f"outgrow {stored.dtype}", "store them as bfloat16 or float32"
    else:
        what, remedy = "are NaN or infinite", "check the checkpoint, or load it as float32 or bfloat16"
    raise UserError(
        f"Activations of the {checkpoint.role} model {checkpoint.name} at {hook} {what} on prompt '{prompt_id}'; "
        f"{remedy}."
    )
