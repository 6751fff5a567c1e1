"""Checkpoints and prompts in, activations out: the harvest, its HDF5 store, and reading from it."""

from typing import TYPE_CHECKING

from activations.lazy import lazy_names

if TYPE_CHECKING:
    from activations.checkpoint import Checkpoint, load_checkpoint
    from activations.config import CheckpointConfig, HarvestConfig
    from activations.errors import UserError
    from activations.harvesting import LiveActivations, harvest
    from activations.memory import InMemory
    from activations.prompt_files import load_prompts, stream_texts
    from activations.prompts import Prompt, Role
    from activations.source import ActivationSource
    from activations.store.merge import merge_stores
    from activations.store.reader import ActivationStore
    from activations.token_files import load_tokens
    from activations.tokens import TokenBatch, TokenStream, tokenize_prompts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "activations.checkpoint": ["Checkpoint", "load_checkpoint"],
            "activations.config": ["CheckpointConfig", "HarvestConfig"],
            "activations.errors": ["UserError"],
            "activations.harvesting": ["LiveActivations", "harvest"],
            "activations.memory": ["InMemory"],
            "activations.prompt_files": ["load_prompts", "stream_texts"],
            "activations.prompts": ["Prompt", "Role"],
            "activations.source": ["ActivationSource"],
            "activations.store.merge": ["merge_stores"],
            "activations.store.reader": ["ActivationStore"],
            "activations.token_files": ["load_tokens"],
            "activations.tokens": ["TokenBatch", "TokenStream", "tokenize_prompts"],
        },
    )

__all__ = [
    "ActivationSource",
    "ActivationStore",
    "Checkpoint",
    "CheckpointConfig",
    "HarvestConfig",
    "InMemory",
    "LiveActivations",
    "Prompt",
    "Role",
    "TokenBatch",
    "TokenStream",
    "UserError",
    "harvest",
    "load_checkpoint",
    "load_prompts",
    "load_tokens",
    "merge_stores",
    "stream_texts",
    "tokenize_prompts",
]
