"""Keeps a fine-tune from shifting a persona: what acts on one block's output while a Hugging Face model trains.

*Preventative steering* (Chen et al. 2025, arXiv 2507.21509) adds `c*r*u` at every position while training, u pointing
to the bad pole: the data's pressure along u is then met already, so the weights need not move there. A *latent
penalty* (BLOCK-EM, arXiv 2602.00767) punishes activity of chosen latents above the base's own on the same tokens.

Both are used as a context (`with method.on(model):`) around any training loop, or as a callback of
`transformers.Trainer`. No loss has to be wrapped: the penalty joins the backward pass at the block's output, and the
loss that a loop sees and reports is still that of the data. They act only where gradients are computed, so a model
that is evaluated in between is seen as it will be without them.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from activations.errors import UserError
from diffing.steering.config import PenaltyConfig

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post")
# Names of one setting in earlier and later versions of the Trainer.
_CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
# What the base must read as well to see the same tokens.
_INPUTS = ("input_ids", "attention_mask", "position_ids")


def find_block(model: nn.Module, hook: str) -> nn.Module:
    """The block of a Hugging Face model (or of a PEFT model around it) whose output a hook name stands for.

    Args:
        model: A causal language model.
        hook: `blocks.{L}.hook_resid_post`.

    Raises:
        UserError: for any other hook, a block that the model lacks, or a model without a list of blocks.
    """
    match = _RESIDUAL.fullmatch(hook)
    if match is None:
        raise UserError(f"Training can be steered after a block only, not at {hook}; name blocks.<L>.hook_resid_post.")
    config: Any = model.config
    layers = config.get_text_config().num_hidden_layers
    if int(match[1]) >= layers:
        raise UserError(f"The model has {layers} blocks, so it has no {hook}; name blocks.0 to blocks.{layers - 1}.")
    # Outer modules come first, so the list of blocks before lists inside a block.
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)
    blocks = next(lists, None)
    if blocks is None:
        raise UserError(f"{type(model).__name__} keeps its {layers} blocks in no list; take a Hugging Face model.")
    return blocks[int(match[1])]


class TrainingHook(TrainerCallback):
    """Changes one block's output while a model trains.

    As a callback it is on from the beginning of a training to its end; after a training that failed call `remove`.

    Args:
        hook: `blocks.{L}.hook_resid_post`.
    """

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self._handles: list[RemovableHandle] = []

    def change(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the block gives instead of `h`."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Starts to act on `model`, and on no other.

        Raises:
            UserError: if the model has no such block.
        """
        self.remove()
        self._handles = [find_block(model, self.hook).register_forward_hook(self._after_block)]

    def remove(self) -> None:
        """Stops to act."""
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Acts on `model` while the context lasts.

        Raises:
            UserError: if the model has no such block.
        """
        self.attach(model)
        try:
            yield
        finally:
            self.remove()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer.

        Raises:
            UserError: if its arguments ask for what does not go together with the hook.
        """
        if any(getattr(args, name, False) for name in _CHECKPOINTING):
            # Its first pass may run without gradients, and its second would count a penalty anew.
            raise UserError("Prevention does not work with gradient checkpointing; train without it.")
        self.attach(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer."""
        self.remove()

    def _after_block(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        if isinstance(output, tuple):
            return self.change(output[0]), *output[1:]
        return self.change(output)


class PreventativeSteering(TrainingHook):
    """Adds `strength * residual_norm * unit` at every position while a model trains.

    Args:
        hook: `blocks.{L}.hook_resid_post`.
        unit: Unit direction that points to the bad pole [d_model].
        strength: c, in mean residual norms of the base; the published strengths are in units of their vectors.
        residual_norm: r, the base's mean residual norm at the hook over prompt tokens.
    """

    def __init__(self, hook: str, unit: Float[Tensor, "d_model"], strength: float, residual_norm: float) -> None:
        super().__init__(hook)
        self.vector = strength * residual_norm * unit

    def change(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return h + self.vector.to(h)


class LatentPenalty(TrainingHook):
    """Adds `weight * mean over tokens and latents of relu(a_i(h) - a_i(h_base))^power` to what is minimised.

    a_i is the ReLU of the latent's pre-activation. The gate of a TopK or JumpReLU SAE is left out (our choice): through
    a closed gate no gradient would come. `h_base` is the base's activation on the same tokens, from a frozen copy that
    reads each batch too (a third more work). Padding is not counted: what the attention mask leaves out, or without a
    mask the padding token.

    Args:
        hook: `blocks.{L}.hook_resid_post`.
        sae: Dictionary of that hook; its parameters are frozen.
        latents: The latents that may not rise.
        base: The model as it is before the training, in a copy of its own; it is frozen.
        config: Weight and form.
        share: Share of the batch that one forward pass reads, where a loop sums the gradients of several passes.
            As a callback, divided by the Trainer's accumulation steps.

    Raises:
        UserError: for no latents, or latents that the SAE lacks.
    """

    def __init__(
        self,
        hook: str,
        sae: SAE,
        latents: Sequence[int],
        base: PreTrainedModel,
        config: PenaltyConfig,
        share: float = 1.0,
    ) -> None:
        super().__init__(hook)
        if not latents or min(latents) < 0 or max(latents) >= sae.cfg.d_sae:
            raise UserError(
                f"Latents {list(latents)} can't be penalised; name one or more from 0 to {sae.cfg.d_sae - 1}."
            )
        self._sae, self._base = sae.requires_grad_(False), base.requires_grad_(False).eval()
        self._latents, self._config, self._share = list(latents), config, share
        self._passes = 1
        # A loop may run parts of a batch in threads of its own.
        self._now = threading.local()

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        device = next(model.parameters()).device
        self._base.to(device)  # pyright: ignore[reportArgumentType]
        self._sae.to(device)
        self._handles += [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            find_block(self._base, self.hook).register_forward_hook(self._after_base),
        ]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the Trainer.

        Raises:
            UserError: if its arguments ask for what does not go together with the penalty.
        """
        if args.fp16:
            raise UserError("The latent penalty is not scaled as fp16 training needs; train in bf16 or float32.")
        self._passes = args.gradient_accumulation_steps
        super().on_train_begin(args, state, control, **kwargs)

    def activity(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos latent"]:
        """ReLU of the chosen latents' pre-activations; only these are computed."""
        weights, bias = self._sae.W_enc[:, self._latents], self._sae.b_enc[self._latents]  # pyright: ignore
        inputs = self._sae.process_sae_in(h.to(self._sae.dtype))
        before = einsum(inputs, weights, "batch pos d_model, d_model latent -> batch pos latent") + bias
        if getattr(self._sae.cfg, "rescale_acts_by_decoder_norm", False):
            before = before * self._sae.W_dec[self._latents].norm(dim=1)
        return before.relu()

    def change(self, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return _WithLoss.apply(h, self.penalty(h, self._now.base, self._now.real))  # pyright: ignore

    def penalty(
        self,
        h: Float[Tensor, "batch pos d_model"],
        base: Float[Tensor, "batch pos latent"],
        real: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, ""]:
        """What one forward pass adds to the loss.

        Args:
            h: Activations of the model that trains.
            base: `activity` of the base on the same tokens.
            real: Tokens that are no padding.
        """
        rises = (self.activity(h) - base).relu()[real]
        return self._config.weight * self._share / self._passes * (rises**self._config.power).mean()

    def _before_model(self, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        given = dict(zip(_INPUTS, inputs, strict=False)) | {n: named[n] for n in _INPUTS if named.get(n) is not None}
        tokens = given["input_ids"]
        padding = self._base.config.pad_token_id
        real = torch.ones_like(tokens) if padding is None else tokens != padding
        self._now.real = given.get("attention_mask", real).bool()
        with torch.no_grad():
            self._base(**given, use_cache=False)

    def _after_base(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._now.base = self.activity(output[0] if isinstance(output, tuple) else output)


class _WithLoss(torch.autograd.Function):
    """Hands activations on, and adds a loss to whatever is minimised through them."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0].new_ones((), dtype=ctx.dtype)
