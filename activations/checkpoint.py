"""Checkpoints: Hugging Face folders or hub names, with an optional PEFT adapter, behind one TransformerBridge.

No compatibility mode: weights stay as they were trained, so activations equal Hugging Face's own.
`blocks.{L}.hook_resid_post` is `hidden_states[L+1]` for all but the last block, whose entry follows the final norm.
"""

import copy
import difflib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from jaxtyping import Int
from torch import Tensor, nn

from activations.artefact import file_hash
from activations.checkpoint_files import ADAPTER_CONFIG, TOKENIZER, check_base, check_checkpoint
from activations.config import CheckpointConfig
from activations.device import require_device
from activations.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import CausalLMOutputWithPast

_IDENTITY = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*token*.json",
    "chat_template*",
    ADAPTER_CONFIG,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model in evaluation mode, without gradients of its weights.

    Attributes:
        config: What was loaded.
        role: What the model is in the comparison, such as "base" or "corrupted"; error messages say it.
        bridge: The model with its hook points.
        tokenizer: Its fast tokenizer, exactly as Hugging Face loads it (the bridge's own copy may have been changed).
        fingerprint: Hash of weights, tokenizer and adapter; for hub models of name and commit.
    """

    config: CheckpointConfig
    role: str
    bridge: "TransformerBridge"
    tokenizer: "PreTrainedTokenizerBase"
    fingerprint: str

    @property
    def name(self) -> str:
        """Folder or hub name, with revision and adapter."""
        return self.config.name

    @property
    def hf(self) -> nn.Module:
        """The Hugging Face model; the bridge's hook points fire inside it."""
        return self.bridge.original_model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.hf.parameters()).device

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.bridge.cfg.d_model

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.bridge.cfg.n_layers

    @cached_property
    def _hook_points(self) -> dict[str, Any]:
        return self.bridge.hook_dict

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch total"],
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> "CausalLMOutputWithPast":
        """Runs the model.

        Args:
            tokens: Token ids; padding goes on the right.
            attention_mask: 1 = real, 0 = padding, over the cached positions as well.
            past_key_values: Cache of an earlier call.
            use_cache: Whether to return a cache.
        """
        return self.hf(
            input_ids=tokens.to(self.device),
            attention_mask=attention_mask.to(self.device),
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    @contextmanager
    def hooks(self, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
        """Calls functions on activations while the context lasts.

        Args:
            functions: For each hook name, a function of the activation; a tensor that it returns replaces it.

        Raises:
            UserError: for a hook that the model lacks.
        """
        for name in functions:
            self.require_hook(name)
        with ExitStack() as stack:
            for name, function in functions.items():
                stack.callback(_add_hook(self._hook_points[name], function))
            yield

    def require_hook(self, name: str) -> None:
        """Checks a hook name; the bridge itself silently ignores unknown ones.

        Raises:
            UserError: naming the nearest hooks that the model has.
        """
        if name in self._hook_points:
            return
        near = difflib.get_close_matches(name, self._hook_points, n=3, cutoff=0.0)
        raise UserError(f"The {self.role} model {self.name} has no hook '{name}'; the nearest are {', '.join(near)}.")


def load_checkpoint(config: CheckpointConfig, role: str = "model") -> Checkpoint:
    """Loads a model: checks its folders, reads the weights, merges the adapter, wraps it in a bridge.

    Local folders are read without network.

    Args:
        config: What to load.
        role: What the model is in the comparison, for error messages.

    Raises:
        UserError: for a device that is not there, a missing or half-written folder, a tokenizer that is not there, an
            adapter made for another base or of other shapes, or a hub name that can't be reached.
    """
    from transformer_lens.model_bridge import TransformerBridge

    require_device(config.device)
    check_checkpoint(config, role)
    with quiet():
        tokenizer = _load_tokenizer(config, role)
        model = _load_model(config, role)
        fingerprint = _fingerprint(config, model)
        if config.adapter is not None:
            model = _merge_adapter(model, config, role)
        model = model.to(config.device)
        # The bridge gives its tokenizer missing special tokens; a copy keeps ours as the folder has it.
        bridge = TransformerBridge.boot_transformers(
            config.model,
            hf_model=model,
            tokenizer=copy.deepcopy(tokenizer),
            device=config.device,
            dtype=getattr(torch, config.dtype),
        )
    # Only now: the bridge makes parameters of its own.
    bridge.original_model.eval().requires_grad_(False)
    bridge.eval()
    return Checkpoint(config, role, bridge, tokenizer, fingerprint)


def outline_checkpoint(config: CheckpointConfig, role: str = "model") -> Checkpoint | None:
    """A checkpoint's tokenizer and architecture without its weights: hooks, widths and sizes, on torch's meta device.

    Needs no network and next to no memory; an adapter is checked, not merged.

    Returns:
        None for a hub model whose config and tokenizer are not in the local cache.

    Raises:
        UserError: as `load_checkpoint` does for what can be seen without weights.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_checkpoint(config, role)
    with quiet():
        try:
            with _hub_errors(config.model, role):
                architecture = AutoConfig.from_pretrained(config.model, revision=config.revision, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision, local_files_only=True)
        except UserError:
            if Path(config.model).is_dir():
                raise
            return None
        dtype = getattr(torch, config.dtype)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation="eager")
        bridge = TransformerBridge.boot_transformers(
            config.model, hf_model=model, tokenizer=copy.deepcopy(tokenizer), device="meta", dtype=dtype
        )
    return Checkpoint(config, role, bridge.eval(), tokenizer, "")


def require_same_tokenizer(one: Checkpoint, other: Checkpoint) -> None:
    """Checks that two checkpoints read every text as the same tokens.

    Raises:
        UserError: saying what differs: vocabulary, merges, special tokens, chat template or pre-processing.
    """
    names = f"The tokenizers of the {one.role} model {one.name} and the {other.role} model {other.name}"
    for part, ours, theirs in _tokenizer_parts(one.tokenizer, other.tokenizer):
        if ours != theirs:
            raise UserError(f"{names} differ in {part}; compare checkpoints that share one tokenizer.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and advice of Hugging Face off the console."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _add_hook(point: Any, function: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Adds a function to a hook point; returns what takes it off again."""

    # The hook point names itself after the repr of its hook, which would print every tensor that `function` holds.
    def call(tensor: Tensor, hook: Any) -> Tensor | None:
        return function(tensor)

    point.add_hook(call)
    handle = point.fwd_hooks[-1]

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks[:] = [kept for kept in point.fwd_hooks if kept is not handle]

    return remove


def _load_tokenizer(config: CheckpointConfig, role: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    with _hub_errors(config.model, role):
        tokenizer = AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, local_files_only=Path(config.model).is_dir()
        )
    if not tokenizer.is_fast:
        raise UserError(f"The {role} model {config.model} has no fast tokenizer; convert it to a {TOKENIZER}.")
    return tokenizer


def _load_model(config: CheckpointConfig, role: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with _hub_errors(config.model, role):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.model,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            # What the bridge asks for when it loads by itself: the hooks inside attention need it.
            attn_implementation="eager",
            local_files_only=Path(config.model).is_dir(),
            output_loading_info=True,
        )
    model, report = loaded
    # Hugging Face fills tensors that the file lacks with random numbers, and only warns.
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"The {role} model {config.model} is half-written: its weights lack {missing[0]} "
            f"({len(missing)} tensors in all); copy or save the folder again."
        )
    return model


def _merge_adapter(model: Any, config: CheckpointConfig, role: str) -> nn.Module:
    from peft import PeftConfig, PeftModel

    assert config.adapter is not None
    where = f"The {role} adapter {config.adapter}"
    with _hub_errors(config.adapter, role):
        adapter = PeftConfig.from_pretrained(config.adapter)
    check_base(where, adapter.base_model_name_or_path, config.model)
    try:
        with warnings.catch_warnings():
            # peft leaves what it does not find at its initial value, which does nothing, and only warns.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, config.adapter, config=adapter).merge_and_unload()
    except (RuntimeError, ValueError, UserWarning) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{where} does not fit {config.model} ({reason}); load it with the model that it was made for."
        ) from None


@contextmanager
def _hub_errors(source: str, role: str) -> Iterator[None]:
    """Turns what Hugging Face raises for an unknown or unreachable name into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The {role} model {source} can't be loaded ({reason}); check the name, the network and your access to it."
        ) from None


def _fingerprint(config: CheckpointConfig, model: Any) -> str:
    """Hash of what decides about activations: files of folders; name and commit of what came from the hub."""
    digest = xxhash.xxh3_128()
    for source, commit in ((config.model, getattr(model.config, "_commit_hash", None)), (config.adapter, None)):
        if source is None:
            continue
        folder = Path(source)
        files = sorted({path for pattern in _IDENTITY for path in folder.glob(pattern)}) if folder.is_dir() else []
        for path in files:
            digest.update(f"{path.name}:{file_hash(path)}:".encode())
        if not files:
            digest.update(f"{source}@{commit or config.revision}:".encode())
    return digest.hexdigest()


def _tokenizer_parts(
    one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase"
) -> Iterator[tuple[str, object, object]]:
    """What decides about tokens, part by part: its name and both versions of it."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    example = f", such as {different[0]!r}" if different else ""
    yield f"their vocabulary ({len(different)} tokens{example})", ours, theirs
    yield "their special tokens", one.special_tokens_map, other.special_tokens_map
    yield "their chat template", one.chat_template, other.chat_template
    one_parts, other_parts = _backend(one), _backend(other)
    for part, name in (("model", "their merges or word model"), ("added_tokens", "their added tokens")):
        yield name, one_parts[part], other_parts[part]
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        yield f"their {part.replace('_', '-')}", one_parts[part], other_parts[part]


def _backend(tokenizer: Any) -> dict[str, Any]:
    """The content of tokenizer.json."""
    return json.loads(tokenizer.backend_tokenizer.to_str())
