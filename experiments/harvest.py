"""Harvests a pair of checkpoints on the same tokens, in one process or in many.

    sae-diff harvest --base A --corrupted B --prompts FILE --hook blocks.15.hook_resid_post --out runs/acts
    torchrun --nproc-per-node 8 -m experiments.harvest (the same options)

Under torchrun each process takes every N-th shard, on a GPU of its own where there is one; the processes share the
folder and need nothing else of one another. Whoever is killed and started again finishes its share.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from activations.checkpoint import load_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import Share, harvest_share
from activations.prompt_files import load_prompts, stream_texts
from activations.store import ActivationStore
from activations.token_files import load_tokens
from activations.tokens import TokenSource, TokenStream, tokenize_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def harvest_models(
    models: Mapping[str, CheckpointConfig],
    prompts: str,
    config: HarvestConfig,
    out: Path,
    stream: bool = False,
    max_length: int | None = None,
    progress: bool = True,
) -> dict[str, ActivationStore | None]:
    """Stores of all models on the same tokens.

    Args:
        models: Checkpoints by role; the base's tokenizer reads the prompts.
        prompts: File of prompts; folder of tokens that `datasets` saved; or what `stream_texts` reads.
        config: What to harvest.
        out: A store is written to `out/<role>`.
        stream: Whether to read `prompts` as a data set that is too long for memory.
        max_length: See `tokenize_prompts`.
        progress: Whether the first process shows progress bars.

    Returns:
        Stores by role; None for one that other processes are still at work on.

    Raises:
        UserError: as `load_checkpoint`, `load_prompts` and `harvest` do, or if the checkpoints' tokenizers differ.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = rank_device()
    placed = {r: model.model_copy(update={"device": device}) if device else model for r, model in models.items()}
    checkpoints = [load_checkpoint(model, role) for role, model in placed.items()]
    for checkpoint in checkpoints:
        require_same_tokenizer(checkpoints[0], checkpoint)
    tokens = _read(prompts, stream, checkpoints[0].tokenizer, max_length)
    return {
        checkpoint.role: harvest_share(
            checkpoint, tokens, config, out / checkpoint.role, Share(rank, ranks), progress and rank == 0
        )
        for checkpoint in checkpoints
    }


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


if __name__ == "__main__":
    from experiments.cli import main

    sys.argv.insert(1, "harvest")
    main()
