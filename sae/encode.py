"""Encoding with any sae-lens SAE when only the active latents are wanted: no row of mostly zeros is ever made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.training.sparse import largest, preactivations

if TYPE_CHECKING:
    from sae_lens import SAE

# Dense latents of an SAE without a path of its own are held for so many values at once.
_BLOCK_VALUES = 2**24
Block = tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Float[Tensor, "pair"]]


@dataclass(frozen=True)
class ActivePairs:
    """Pairs of a row and a latent that is active on it, in the order of the rows."""

    row: Int[Tensor, "pair"]
    latent: Int[Tensor, "pair"]
    value: Float[Tensor, "pair"]


@torch.no_grad()
def encode_active(sae: "SAE", rows: Float[Tensor, "rows d_model"]) -> ActivePairs:
    """The latents that `sae.encode(rows)` gives a value other than zero, with their values.

    TopK and JumpReLU SAEs without rescaling or reshaping are searched while each block of pre-activations is in the
    cache; all others are encoded by sae-lens and searched then.
    """
    parts = list(_path(sae)(sae, rows.to(sae.device, sae.dtype)))
    if not parts:
        none = torch.empty(0, dtype=torch.int64, device=sae.device)
        return ActivePairs(none, none, rows.new_empty(0).to(sae.device))
    return ActivePairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _path(sae: "SAE") -> "Callable[[SAE, Tensor], Iterator[Block]]":
    from sae_lens import JumpReLUSAE, TopKSAE

    plain = sae.cfg.normalize_activations == "none" and sae.cfg.reshape_activations == "none"
    if plain and type(sae) is TopKSAE and not sae.cfg.rescale_acts_by_decoder_norm:
        return _topk
    if plain and type(sae) is JumpReLUSAE:
        return _jumprelu
    return _dense


def _topk(sae: "SAE", x: Tensor) -> Iterator[Block]:
    indices, values = largest(sae.process_sae_in(x), sae.W_enc.T, sae.b_enc, sae.cfg.k, None)  # pyright: ignore
    row = torch.arange(len(x), device=x.device).repeat_interleave(indices.shape[1])
    active = values.flatten() > 0
    yield row[active], indices.flatten()[active], values.flatten()[active]


def _jumprelu(sae: "SAE", x: Tensor) -> Iterator[Block]:
    threshold = sae.threshold.relu()  # pyright: ignore
    for rows, pre in preactivations(sae.process_sae_in(x), sae.W_enc.T, sae.b_enc, None):  # pyright: ignore
        row, latent = (pre > threshold).nonzero(as_tuple=True)
        yield row + rows.start, latent, pre[row, latent]


def _dense(sae: "SAE", x: Tensor) -> Iterator[Block]:
    size = max(1, _BLOCK_VALUES // sae.cfg.d_sae)
    for start in range(0, len(x), size):
        latents = sae.encode(x[start : start + size])
        row, latent = latents.nonzero(as_tuple=True)
        yield row + start, latent, latents[row, latent]
