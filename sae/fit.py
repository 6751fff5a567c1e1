"""Does an SAE fit these activations? Its numbers on them and, where they are bad, what makes them good.

An SAE of another layer or model, or one made for activations of another scale, loads and runs without complaint: only
its numbers tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import UserError
from activations.prompts import NON_SPECIAL
from activations.source import ActivationSource
from sae.storage import require_fit

if TYPE_CHECKING:
    from sae_lens import SAE

# An SAE in use leaves some 5 to 35% of the variance of its own activations unexplained; their mean alone leaves all.
MAX_FVU = 0.5
# The number of active latents differs from text to text, but hardly by this factor.
MAX_L0_FACTOR = 3.0
# An L1 penalty makes reconstructions shorter than their rows, but not by half; nothing makes them twice as long.
NORM_RATIOS = (0.5, 2.0)

# Latents of a wide SAE are dense while they are counted: 1,024 rows of 131k latents are 0.5 GB.
_ROWS = 1024
_LIKELY_CAUSES = (
    "likely causes: it belongs to another layer or model, it expects activations normalised in some way, or the "
    "prompts were read without the BOS that it was trained with"
)


@dataclass(frozen=True)
class Fit:
    """How an SAE does on rows x with reconstructions x' (statistics in float64).

    Attributes:
        where: what the rows are.
        fvu: sum ||x - x'||^2 / sum ||x - mean||^2, the mean taken over the rows.
        l0: mean number of active latents.
        norm_ratio: mean ||x'|| / mean ||x||.
        expected_l0: active latents that the SAE was made for: K of a TopK, else `metadata.l0`; None if unknown.
        rows: number of rows.
        diagnosis: what explains a bad fit, by the numbers under other conditions; empty where it fits.
    """

    where: str
    fvu: float
    l0: float
    norm_ratio: float
    expected_l0: float | None
    rows: int
    diagnosis: str = ""


def check_fit(sae: "SAE", source: ActivationSource, hook: str, rows: int = 8192) -> Fit:
    """Measures an SAE on the first non-special rows of a source.

    If it does not fit them, it is measured again: on the same rows scaled to a mean norm of sqrt(d_model) or 1, which
    SAEs may expect; without rows of first tokens; and with the special rows that lie between them.

    Args:
        sae: the SAE.
        source: activations.
        hook: whose activations.
        rows: non-special rows to measure on, or all where the source has fewer.

    Raises:
        UserError: if the SAE is of another width or says that it is of another hook, or the source has no non-special
            rows that vary.
    """
    require_fit(sae, hook, source.d_model(hook))
    sample = _Sample.of(source, hook, rows)
    x = sample.x[sample.ordinary]
    # Also false for NaN.
    if not x.double().var(0).sum() > 0:
        raise UserError(
            f"The first {len(x)} non-special rows of {hook} in {source.name} do not vary or hold NaN; harvest other "
            "prompts, or from a sound checkpoint."
        )
    fit = _measured(sae, x, f"{hook} of {source.name}")
    return replace(fit, diagnosis=_diagnosis(sae, sample)) if _complaints(fit) else fit


def fit_warning(fit: Fit) -> str | None:
    """A sentence with the numbers of a bad fit and what may be behind them; None where the SAE fits.

    It fits if FVU, L0 and the reconstructions' norm keep within `MAX_FVU`, `MAX_L0_FACTOR` and `NORM_RATIOS`.
    """
    complaints = _complaints(fit)
    if not complaints:
        return None
    return f"The SAE does not fit {fit.where} ({fit.rows} rows): {', '.join(complaints)}; {fit.diagnosis}."


@dataclass(frozen=True)
class _Sample:
    """Rows in the source's order, special ones among them.

    Attributes:
        x: activations.
        ordinary: which of them are not special.
        first: which of them are a prompt's first token.
    """

    x: Float[Tensor, "rows d_model"]
    ordinary: Bool[Tensor, "rows"]
    first: Bool[Tensor, "rows"]

    @classmethod
    def of(cls, source: ActivationSource, hook: str, rows: int) -> "_Sample":
        """The first rows of a source, until `rows` ordinary ones are together."""
        parts, missing = [], rows
        for x, index in source.chunks(hook):
            ordinary = torch.from_numpy(np.isin(index["role"], NON_SPECIAL))
            first = torch.from_numpy(index["position"] == 0)
            kept = ordinary.cumsum(0) <= missing
            parts.append((x[kept], ordinary[kept], first[kept]))
            missing -= int(ordinary[kept].sum())
            if missing == 0:
                break
        if missing == rows:
            raise UserError(f"{source.name} has no non-special rows of {hook}; harvest other prompts.")
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def _measured(sae: "SAE", x: Float[Tensor, "rows d_model"], where: str = "") -> Fit:
    error = length = again_length = 0.0
    active = 0
    for part in x.split(_ROWS):
        latents = sae.encode(part.to(sae.device))
        again, exact = sae.decode(latents).double(), part.to(sae.device).double()
        error += (exact - again).square().sum().item()
        length += exact.norm(dim=1).sum().item()
        again_length += again.norm(dim=1).sum().item()
        active += int((latents != 0).sum())
    variation = x.double().var(0, correction=0).sum().item() * len(x)
    return Fit(
        where=where,
        fvu=_ratio(error, variation),
        l0=active / len(x),
        norm_ratio=_ratio(again_length, length),
        expected_l0=_expected_l0(sae),
        rows=len(x),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _expected_l0(sae: "SAE") -> float | None:
    known = getattr(sae.cfg, "k", None) or sae.cfg.metadata.l0
    return float(known) if isinstance(known, int | float) and known > 0 else None


def _complaints(fit: Fit) -> list[str]:
    """What is bad about a fit; comparisons are such that NaN is bad."""
    found = []
    if not fit.fvu <= MAX_FVU:
        found.append(f"FVU {fit.fvu:.3g} (above {MAX_FVU:g})")
    if fit.l0 == 0:
        found.append("no latent is active on any row")
    elif fit.expected_l0 and not 1 / MAX_L0_FACTOR <= fit.l0 / fit.expected_l0 <= MAX_L0_FACTOR:
        found.append(f"L0 {fit.l0:.3g} ({fit.expected_l0:g} expected)")
    low, high = NORM_RATIOS
    if not low <= fit.norm_ratio <= high:
        found.append(f"reconstructions {fit.norm_ratio:.3g} times as long as the rows")
    return found


def _diagnosis(sae: "SAE", sample: _Sample) -> str:
    causes = [*_other_scale(sae, sample), *_first_tokens(sae, sample)]
    return "; ".join([*(causes or [_LIKELY_CAUSES]), *_hidden_by_special(sae, sample)])


def _other_scale(sae: "SAE", sample: _Sample) -> Iterator[str]:
    """Scales that SAEs are trained at: Anthropic's (April 2024 update) and Gemma Scope's (arXiv 2408.05147)."""
    x = sample.x[sample.ordinary]
    length = x.double().norm(dim=1).mean().item()
    lengths = {"sqrt(d_model)": x.shape[1] ** 0.5, "1": 1.0}
    # Neither FVU nor the ratio of norms changes when rows and reconstructions are scaled back.
    fits = {name: _measured(sae, x * (expected / length)) for name, expected in lengths.items()}
    good = {name: fit for name, fit in fits.items() if not _complaints(fit)}
    if good:
        name = min(good, key=lambda name: good[name].fvu)
        yield (
            f"scaled from a mean norm of {length:.3g} to {lengths[name]:.3g} it fits ({_numbers(good[name])}): the SAE "
            f"seems to expect activations scaled to a mean norm of {name}"
        )


def _first_tokens(sae: "SAE", sample: _Sample) -> Iterator[str]:
    """A model makes the first token of all, whatever it is, unlike any other; that should be BOS, a special row."""
    first, others = sample.x[sample.ordinary & sample.first], sample.x[sample.ordinary & ~sample.first]
    if len(first) == 0 or len(others) == 0:
        return
    fit = _measured(sae, others)
    if not _complaints(fit):
        longer = first.double().norm(dim=1).mean().item() / others.double().norm(dim=1).mean().item()
        yield (
            f"without the first tokens of prompts ({len(first)} rows, {longer:.3g} times as long as the others) it "
            f"fits ({_numbers(fit)}): nothing special stands before them, so BOS is missing or not known as special"
        )


def _hidden_by_special(sae: "SAE", sample: _Sample) -> Iterator[str]:
    special = int((~sample.ordinary).sum())
    fit = _measured(sae, sample.x) if special else None
    if fit and not _complaints(fit):
        yield f"figures over all tokens hide this: with the {special} special rows there is {_numbers(fit)}"


def _numbers(fit: Fit) -> str:
    return f"FVU {fit.fvu:.3g}, L0 {fit.l0:.3g}"
