"""The harvest: activations of a checkpoint on given tokens, streamed into a store."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from activations.artefact import CONFIG
from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import TokenBatch, length_buckets, pad
from activations.store import ActivationStore, StoreDtype, StoreWriter


class HarvestConfig(BaseModel):
    """What to harvest, and how it is batched and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hooks: tuple[str, ...] = Field(min_length=1, description="Hook points, such as blocks.3.hook_resid_post.")
    dtype: StoreDtype = Field(default="float32", description="Number format in the store.")
    batch_tokens: int = Field(default=16384, ge=1, description="Most tokens in a batch, padding included.")
    shard_rows: int = Field(default=65536, ge=1, description="Rows after which a shard is written.")


class _Harvested(Exception):
    """Every hook has fired; what the model would compute after it is not needed."""


def harvest(
    checkpoint: Checkpoint, token_batch: TokenBatch, config: HarvestConfig, folder: Path, progress: bool = True
) -> ActivationStore:
    """Writes a checkpoint's activations on `token_batch` to a store.

    Prompts of similar length share a batch, padded on the right; padding never reaches the store. The model stops after
    the last hook. A finished store of the same activations is used again, an unfinished one is finished.

    Args:
        checkpoint: Whose activations.
        token_batch: On which tokens.
        config: At which hooks, and how to store them.
        folder: Of the store.
        progress: Whether to show a progress bar.

    Raises:
        UserError: for a hook that the model lacks or that does not give one vector a position; for NaN or infinite
            activations; for a folder that holds something else or that another process is writing to.
    """
    for hook in config.hooks:
        checkpoint.require_hook(hook)
    described = _describe(checkpoint, token_batch, config)
    if (folder / CONFIG).exists():
        return _finished(folder, config, described)
    batches = length_buckets(token_batch, config.batch_tokens)
    widths = _widths(checkpoint, token_batch, config.hooks)
    with StoreWriter(folder, widths, config.dtype, described, config.shard_rows) as writer:
        done = batches[: writer.finished_batches]
        tokens_done = sum(len(token_batch.tokens[i]) for batch in done for i in batch)
        bar = {"initial": tokens_done, "unit": " tokens", "desc": f"harvest {checkpoint.role}", "unit_scale": True}
        with tqdm(total=token_batch.n_tokens, disable=not progress, leave=False, **bar) as progress_bar:
            for batch in batches[len(done) :]:
                progress_bar.update(_harvest_batch(checkpoint, token_batch, batch, config, writer))
        return writer.close()


def _describe(checkpoint: Checkpoint, token_batch: TokenBatch, config: HarvestConfig) -> dict[str, Any]:
    """What the store's config says about its making; all of it but the display name decides about its content."""
    return {
        "model": checkpoint.name,
        "checkpoint": checkpoint.fingerprint,
        "model_dtype": checkpoint.config.dtype,
        "processing": "none: raw weights and activations",
        "tokens_hash": token_batch.hash,
        "batch_tokens": config.batch_tokens,
        "shard_rows": config.shard_rows,
        "prompt_ids": list(token_batch.ids),
    }


def _finished(folder: Path, config: HarvestConfig, described: Mapping[str, Any]) -> ActivationStore:
    """The finished store in `folder`, if it is the one that would be harvested."""
    store = ActivationStore.load(folder)
    wanted = {**described, "dtype": config.dtype, "model": store.config.get("model")}
    if store.hooks != config.hooks or any(store.config.get(key) != value for key, value in wanted.items()):
        raise UserError(f"{folder} holds other activations; choose another folder or --overwrite.")
    return store


def _widths(checkpoint: Checkpoint, token_batch: TokenBatch, hooks: Sequence[str]) -> dict[str, int]:
    """The width of each hook's activations, seen on one token."""
    activations = _activations(checkpoint, [token_batch.tokens[0][:1]], hooks)
    return {hook: rows.shape[-1] for hook, rows in activations.items()}


def _harvest_batch(
    checkpoint: Checkpoint, token_batch: TokenBatch, batch: Sequence[int], config: HarvestConfig, writer: StoreWriter
) -> int:
    """Harvests one batch; returns its number of tokens."""
    tokens = [token_batch.tokens[i] for i in batch]
    prompt = np.concatenate([np.full(len(t), i) for i, t in zip(batch, tokens, strict=True)])
    dtype = getattr(torch, config.dtype)
    activations = _activations(checkpoint, tokens, config.hooks)
    stored = {hook: rows.to(dtype) for hook, rows in activations.items()}
    for hook in config.hooks:
        _require_finite(checkpoint, hook, activations[hook], stored[hook], [token_batch.ids[i] for i in prompt])
    writer.append(
        stored,
        token=np.concatenate(tokens),
        prompt=prompt,
        position=np.concatenate([np.arange(len(t)) for t in tokens]),
        role=np.concatenate([token_batch.roles[i] for i in batch]),
    )
    return len(prompt)


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
    prompt_ids: Sequence[str],
) -> None:
    finite = stored.isfinite().all(-1)
    if finite.all():
        return
    row = int(finite.logical_not().nonzero()[0])
    if computed[row].isfinite().all():
        what, remedy = f"outgrow {stored.dtype}", "store them as bfloat16 or float32"
    else:
        what, remedy = "are NaN or infinite", "check the checkpoint, or load it as float32 or bfloat16"
    raise UserError(
        f"Activations of the {checkpoint.role} model {checkpoint.name} at {hook} {what} on prompt '{prompt_ids[row]}'; "
        f"{remedy}."
    )
