"""How far apart two models' predictions are on the same tokens (METHODS, I)."""

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from activations.errors import UserError
from activations.tokens import TokenBatch, length_buckets, pad
from diffing.positions import POSITION_ROLES

if TYPE_CHECKING:
    from activations.checkpoint import Checkpoint

# Logits of two models are in memory together: 2,048 tokens over 150k words are 1.2 GB each.
_BATCH_TOKENS = 2048
# Log-probabilities held in float64 at once.
_BLOCK_VALUES = 2**24


@torch.inference_mode()
def mean_kl(base: "Checkpoint", model: "Checkpoint", tokens: TokenBatch) -> Float64[np.ndarray, "prompt"]:
    """KL(base || model) of the next token's distribution in nats, averaged over the prompt tokens of each prompt.

    Special tokens and answers are left out; the last prompt token, which predicts the first of the answer, counts. The
    direction of the divergence is our choice. NaN for a prompt without such tokens.

    Args:
        base: The reference.
        model: The model that is compared; it reads tokens as the base does.
        tokens: The prompts.

    Raises:
        UserError: if the models predict vocabularies of different sizes.
    """
    found = np.full(len(tokens), np.nan)
    for bucket in length_buckets(tokens, _BATCH_TOKENS):
        batch = tokens.select(bucket)
        padded, mask = pad(batch.tokens, 0)
        # Padding gets the role of special tokens, which no prompt token has.
        roles, _ = pad(batch.roles, 0)
        counted = torch.isin(roles, torch.tensor([int(role) for role in POSITION_ROLES["prompt"]]))
        logits = [_logits(each, padded, mask, counted) for each in (base, model)]
        _require_same_width(base, model, *logits)
        divergence = _kl(*logits).cpu().numpy()
        row = counted.nonzero()[:, 0].numpy()
        with np.errstate(invalid="ignore"):
            found[bucket] = np.bincount(row, divergence, len(bucket)) / np.bincount(row, minlength=len(bucket))
    return found


def _logits(
    model: "Checkpoint", tokens: Tensor, mask: Tensor, counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "counted word"]:
    return cast(Tensor, model.forward(tokens, mask).logits)[counted.to(model.device)]


def _kl(p: Float[Tensor, "counted word"], q: Float[Tensor, "counted word"]) -> Float64[Tensor, "counted"]:
    """KL(p || q) of the distributions with these logits."""
    size = max(1, _BLOCK_VALUES // p.shape[1])
    parts = [
        F.kl_div(theirs.double().log_softmax(-1), ours.double().log_softmax(-1), log_target=True, reduction="none")
        for ours, theirs in zip(p.split(size), q.to(p.device).split(size), strict=True)
    ]
    return torch.cat([part.sum(-1) for part in parts])


def _require_same_width(base: "Checkpoint", model: "Checkpoint", p: Tensor, q: Tensor) -> None:
    if p.shape[1] != q.shape[1]:
        raise UserError(
            f"The {base.role} model {base.name} predicts {p.shape[1]} words and the {model.role} model {model.name} "
            f"{q.shape[1]}; compare models with one vocabulary."
        )
