"""What a ranking of latents cannot show: the part of the models' difference that the SAE does not reconstruct."""

import numpy as np
from sae_lens import SAE

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.positions import Positions
from diffing.ranking.activation_means import reconstruction_means
from diffing.ranking.prompt_blocks import require_same_tokens


def unexplained_difference(
    sae: SAE, base: ActivationSource, corrupted: ActivationSource, hook: str, positions: Positions
) -> float:
    """Share of the models' mean difference that stays in the latents' residual.

    With d the mean over prompts of corrupted - base activation (means over the positions of each prompt), and d' the
    same of the SAE's reconstructions: ||d - d'||^2 / ||d||^2. At 0 all of the shift is in the latents; at 1 the
    latents might as well not have moved; above 1 they moved the wrong way. NaN if the models do not differ.

    Args:
        sae: The SAE whose latents are ranked.
        base: The base's activations.
        corrupted: The corrupted model's, on identical tokens.
        hook: Hook point of the activations.
        positions: Positions that are averaged within each prompt.

    Raises:
        UserError: if the stores hold different tokens, the SAE's d_model does not fit, or no prompt has tokens at the
            chosen positions.
    """
    require_same_tokens({"base": base, "corrupted": corrupted})
    means = {store: reconstruction_means(sae, store, hook, positions) for store in (base, corrupted)}
    difference, explained = (after - before for before, after in zip(means[base], means[corrupted], strict=True))
    used = ~np.isnan(difference).any(1)
    if not used.any():
        raise UserError(f"No prompt of {base.name} has tokens at the positions '{positions}'; choose other positions.")
    d, explained_d = difference[used].mean(0), explained[used].mean(0)
    whole = float(d @ d)
    return float(np.square(d - explained_d).sum()) / whole if whole > 0 else float("nan")
