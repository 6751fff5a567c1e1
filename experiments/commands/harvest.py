"""Harvests a pair of checkpoints on the same tokens, in one process or in many.

    sae-diff harvest --base A --corrupted B --prompts FILE --hook blocks.15.hook_resid_post --out runs/acts
    torchrun --nproc-per-node 8 -m experiments.cli harvest (the same options)

Under torchrun each process takes every N-th shard, on a GPU of its own where there is one; the processes share the
folder and need nothing else of one another. Whoever is killed and started again finishes its share.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from activations.checkpoint import load_checkpoint, require_same_tokenizer
from activations.harvesting import Share, batch_tokens_for, harvest_share
from activations.prompt_files import load_prompts, stream_texts
from activations.store import ActivationStore
from activations.token_files import load_tokens
from activations.tokens import TokenSource, TokenStream, tokenize_prompts
from experiments.commands.requests import HarvestRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def harvest_models(request: HarvestRequest) -> dict[str, ActivationStore | None]:
    """Stores of all models on the same tokens, which the base's tokenizer reads.

    Returns:
        Stores by role; None for one that other processes are still at work on.

    Raises:
        UserError: as `load_checkpoint`, `load_prompts` and `harvest_share` do, or if tokenizers differ.
    """
    device = rank_device()
    placed = {r: m.model_copy(update={"device": device}) if device else m for r, m in request.models.items()}
    config = request.settings(request.batch_tokens or batch_tokens_for(device or request.device))
    checkpoints = [load_checkpoint(model, role) for role, model in placed.items()]
    for checkpoint in checkpoints:
        require_same_tokenizer(checkpoints[0], checkpoint)
    tokens = _read(request.prompts, request.stream, checkpoints[0].tokenizer, request.max_length)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    progress = not request.quiet and rank == 0
    return {
        checkpoint.role: harvest_share(
            checkpoint, tokens, config, request.out / checkpoint.role, Share(rank, ranks), progress
        )
        for checkpoint in checkpoints
    }


def print_stores(stores: Mapping[str, ActivationStore | None], out: Path, console: Console) -> None:
    """What was written."""
    for role, found in stores.items():
        state = "share done, others are at work"
        if found is not None:
            state = f"{found.rows:,} rows, tokens {found.tokens_hash}"
        console.print(f"{out / role}: {state}", soft_wrap=True)


def _read(prompts: str, stream: bool, tokenizer: "PreTrainedTokenizerBase", max_length: int | None) -> TokenSource:
    if stream:
        return TokenStream(stream_texts(prompts), tokenizer, max_length)
    if Path(prompts).is_dir():
        return load_tokens(Path(prompts), tokenizer.all_special_ids)
    return tokenize_prompts(load_prompts(Path(prompts)), tokenizer, max_length)


def rank_device() -> str | None:
    """Under torchrun, the GPU of this process among those of its machine; None leaves the device that was asked for."""
    gpus = torch.cuda.device_count()
    if not gpus or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % gpus}"
