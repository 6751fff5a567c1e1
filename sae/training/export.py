"""Trained weights as sae-lens SAEs for raw activations: what is saved is what was trained."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.training.config import TrainConfig
from sae.training.engine import Normalisation, Weights

if TYPE_CHECKING:
    from sae_lens import SAE

_THRESHOLD_BATCH = 4096


def to_sae_lens(
    weights: Weights, normalisation: Normalisation, config: TrainConfig, sample: Float[Tensor, "rows d_model"]
) -> "SAE":
    """The same function of raw activations as a `sae_lens.TopKSAE`, or for BatchTopK a `sae_lens.JumpReLUSAE`.

    With n = (x - mean) * scale, dividing latents and reconstruction by `scale` leaves both weight matrices as they
    are: pre = w_enc (x - mean - b_dec / scale) + b_enc / scale, and x' = w_dec latents + mean + b_dec / scale.

    Args:
        weights: What was trained.
        normalisation: What it was trained on the outcome of.
        config: Architecture and k.
        sample: Raw activations, for BatchTopK's threshold.
    """
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

    latents, d_model = weights.w_dec.shape
    shape = {"d_in": d_model, "d_sae": latents, "device": str(weights.w_dec.device), "dtype": "float32"}
    state: dict[str, Tensor] = {
        "W_enc": weights.w_enc.detach().T.contiguous(),
        "b_enc": weights.b_enc.detach() / normalisation.scale,
        "W_dec": weights.w_dec.detach(),
        "b_dec": normalisation.mean + weights.b_dec.detach() / normalisation.scale,
    }
    if config.architecture == "topk":
        sae: SAE = TopKSAE(TopKSAEConfig(k=config.k, **shape))
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(**shape))
        sae.cfg.metadata.l0 = float(config.k)
        normalised = normalisation.apply(sample.to(weights.w_dec.device))
        threshold = activity_threshold(lambda x: (x @ weights.w_enc.T + weights.bias()).relu(), normalised, config.k)
        state["threshold"] = torch.full_like(state["b_enc"], threshold / normalisation.scale)
    sae.load_state_dict(state)
    return sae.eval()


@torch.no_grad()
def activity_threshold(
    encode: Callable[[Float[Tensor, "rows d_model"]], Float[Tensor, "rows latent"]],
    rows: Float[Tensor, "rows d_model"],
    k: int,
) -> float:
    """The value above which k latents are active on average: BatchTopK over the whole sample, halfway to the next one.

    Training chooses within batches, whose thresholds scatter round this one; sae-lens instead follows the smallest
    active value of each batch by a running mean, which lags behind the weights.

    Args:
        encode: Gives every latent's value before the threshold.
        rows: What it takes.
        k: Mean number of active latents.
    """
    wanted = k * len(rows)
    largest = torch.zeros(0, device=rows.device)
    for part in rows.split(_THRESHOLD_BATCH):
        values = encode(part).flatten()
        # Only the k * rows + 1 largest of all seen so far can matter.
        largest = torch.cat([largest, values[values > 0]])
        if len(largest) > wanted + 1:
            largest = largest.topk(wanted + 1, sorted=False).values
    descending = largest.sort(descending=True).values
    return descending[wanted - 1 : wanted + 1].mean().item() if len(descending) > wanted else 0.0
