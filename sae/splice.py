"""What a model loses when it has to live on an SAE's reconstruction: cross-entropy and KL beside two ablations.

The numbers are those of sae-lens 6's `run_evals` where both have them: predictions made at non-special positions count
(those where the SAE's output stands, whatever token comes next), the SAE replaces non-special positions, and zero
ablation replaces every position. Special here are all `Role.SPECIAL` tokens, turn markers of chat templates among them;
sae-lens by itself only leaves out BOS, EOS, PAD and SEP.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.prompts import NON_SPECIAL
from activations.tokens import TokenBatch, length_buckets, pad

if TYPE_CHECKING:
    from sae_lens import SAE

    from activations.checkpoint import Checkpoint

# Latents of a wide SAE are dense while it is evaluated: 1,024 rows of 131k latents are 0.5 GB.
ENCODED_ROWS = 1024
# Logits of two runs are in memory together: 2,048 tokens over 150k words are 1.2 GB each.
_BATCH_TOKENS = 2048
# Log-probabilities held in float64 at once.
_BLOCK_VALUES = 2**24
_NO_TARGET = -100

Rows = Float[Tensor, "rows d_model"]
Hook = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@dataclass(frozen=True)
class CrossEntropy:
    """Means over predictions made at non-special positions, in nats (sums in float64).

    Attributes:
        ce_clean: cross-entropy of the next token, of the model as it is.
        ce_spliced: with the reconstruction in place of the activation at non-special positions.
        ce_zero: with zero at every position. Special positions lose theirs too, as in sae-lens.
        ce_mean: with the mean activation in place of those that the SAE replaces, so that it takes away what the SAE
            has to carry and nothing else; sae-lens lacks it.
        ce_recovered: (ce_zero - ce_spliced) / (ce_zero - ce_clean); sae-lens's `ce_loss_score`.
        ce_recovered_mean: the same against `ce_mean`.
        kl_spliced: KL(clean || spliced) of the next token's distribution, at the last position too.
        kl_zero: KL(clean || zero).
        kl_mean: KL(clean || mean).
        kl_recovered: 1 - kl_spliced / kl_zero; sae-lens's `kl_div_score`.
        kl_recovered_mean: the same against `kl_mean`.
        targets: predictions with a next token, over which cross-entropy is averaged.
        positions: all predictions, over which KL is averaged.
    """

    ce_clean: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    ce_recovered: float
    ce_recovered_mean: float
    kl_spliced: float
    kl_zero: float
    kl_mean: float
    kl_recovered: float
    kl_recovered_mean: float
    targets: int
    positions: int


@torch.no_grad()
def cross_entropy_metrics(
    sae: "SAE",
    checkpoint: "Checkpoint",
    token_batch: TokenBatch,
    hook: str,
    mean: Float[Tensor, "d_model"],
    progress: bool = True,
) -> CrossEntropy:
    """Cross-entropy and KL of the clean model, with the SAE spliced in, and with two ablations.

    Args:
        sae: the SAE, on the checkpoint's device.
        checkpoint: model to splice the SAE into.
        token_batch: prompts to predict.
        hook: hook point.
        mean: what mean ablation puts in place of activations, usually their mean over the same prompts.
        progress: shows a bar.

    Raises:
        UserError: if no non-special token of the prompts is followed by another, or the model lacks the hook.
    """
    checkpoint.require_hook(hook)
    sums = _Sums()
    buckets = length_buckets(token_batch, _BATCH_TOKENS)
    for bucket in tqdm(buckets, desc=f"splicing into {checkpoint.role}", unit="batch", disable=not progress):
        batch = _Padded.of(token_batch.select(bucket), checkpoint)
        hooks = {
            "spliced": _replace(lambda rows: reconstruct(sae, rows), batch.ordinary),
            "zero": torch.zeros_like,
            "mean": _replace(mean.expand_as, batch.ordinary),
        }
        _add_losses(sums, checkpoint, hook, batch, hooks)
    if sums.targets == 0:
        raise UserError(
            f"None of the {len(token_batch)} prompts has a non-special token with another after it; give longer ones."
        )
    return sums.metrics()


def reconstruct(sae: "SAE", rows: Rows) -> Rows:
    """The SAE's output, a block of rows at a time."""
    return torch.cat([sae.decode(sae.encode(block)) for block in rows.split(ENCODED_ROWS)])


@dataclass
class _Sums:
    """Cross-entropy and KL, summed over predictions, by what stands at the hook."""

    ce: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kl: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    targets: int = 0
    positions: int = 0

    def metrics(self) -> CrossEntropy:
        ce = {name: total / self.targets for name, total in self.ce.items()}
        kl = {name: total / self.positions for name, total in self.kl.items()}
        return CrossEntropy(
            ce_clean=ce["clean"],
            ce_spliced=ce["spliced"],
            ce_zero=ce["zero"],
            ce_mean=ce["mean"],
            ce_recovered=_recovered(ce["spliced"], ce["zero"], ce["clean"]),
            ce_recovered_mean=_recovered(ce["spliced"], ce["mean"], ce["clean"]),
            kl_spliced=kl["spliced"],
            kl_zero=kl["zero"],
            kl_mean=kl["mean"],
            kl_recovered=_recovered(kl["spliced"], kl["zero"], 0.0),
            kl_recovered_mean=_recovered(kl["spliced"], kl["mean"], 0.0),
            targets=self.targets,
            positions=self.positions,
        )


def _recovered(spliced: float, ablated: float, clean: float) -> float:
    """Share of what the ablation loses that the SAE keeps; NaN if the ablation loses nothing."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


@dataclass(frozen=True)
class _Padded:
    """A right-padded batch, where its positions are non-special, and which token is predicted there."""

    tokens: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    ordinary: Bool[Tensor, "batch pos"]

    @classmethod
    def of(cls, prompts: TokenBatch, checkpoint: "Checkpoint") -> "_Padded":
        # Padding is masked and never predicted, so any id does.
        tokens, mask = pad(prompts.tokens, 0)
        ordinary, _ = pad([np.isin(roles, NON_SPECIAL).astype(np.int32) for roles in prompts.roles], 0)
        device = checkpoint.device
        return cls(tokens.to(device), mask.to(device), ordinary.bool().to(device))

    @property
    def targets(self) -> Int[Tensor, "chosen"]:
        """The token after each non-special one; `_NO_TARGET` after a prompt's last."""
        following = torch.full_like(self.tokens, _NO_TARGET)
        following[:, :-1] = torch.where(self.mask[:, 1:].bool(), self.tokens[:, 1:], _NO_TARGET)
        return following[self.ordinary]


def _add_losses(sums: _Sums, checkpoint: "Checkpoint", hook: str, batch: _Padded, hooks: Mapping[str, Hook]) -> None:
    targets = batch.targets
    sums.targets += int((targets != _NO_TARGET).sum())
    sums.positions += len(targets)
    clean = _logits(checkpoint, {}, batch)
    sums.ce["clean"] += _losses(clean, clean, targets)[0]
    for name, function in hooks.items():
        ce, kl = _losses(_logits(checkpoint, {hook: function}, batch), clean, targets)
        sums.ce[name] += ce
        sums.kl[name] += kl


def _logits(checkpoint: "Checkpoint", hooks: Mapping[str, Hook], batch: _Padded) -> Float[Tensor, "chosen word"]:
    """At the non-special positions."""
    with checkpoint.hooks(hooks):
        return cast(Tensor, checkpoint.forward(batch.tokens, batch.mask).logits)[batch.ordinary]


def _losses(
    logits: Float[Tensor, "chosen word"], clean: Float[Tensor, "chosen word"], targets: Int[Tensor, "chosen"]
) -> tuple[float, float]:
    """Summed cross-entropy and KL(clean || these)."""
    ce, kl = 0.0, 0.0
    blocks = (tensor.split(max(1, _BLOCK_VALUES // logits.shape[1])) for tensor in (logits, clean, targets))
    for theirs, ours, following in zip(*blocks, strict=True):
        log_q, log_p = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
        ce += F.nll_loss(log_q, following, ignore_index=_NO_TARGET, reduction="sum").item()
        kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return ce, kl


def _replace(function: Callable[[Rows], Rows], where: Bool[Tensor, "batch pos"]) -> Hook:
    """A hook which replaces the activations at the given positions and leaves the others."""

    def replace(activation: Tensor) -> Tensor:
        out = activation.clone()
        out[where] = function(activation[where]).to(activation.dtype)
        return out

    return replace
