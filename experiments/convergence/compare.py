"""Cosines: between fine-tunes, with the base's persona and the toxic latent, and of what rank-1 adapters write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffing.directions.lora import written_vectors
from diffing.directions.misalignment import CONTRASTS, MisalignmentMeans
from diffing.directions.random_directions import chance_cosine, chance_cosine_of_two
from diffing.geometry import cosines, unit_rows
from diffing.statistics.intervals import percentile_interval
from experiments.convergence.config import FINE_TUNE
from experiments.convergence.members import ConvergenceLab, question_sums
from experiments.frame.trials import NamedDirection
from experiments.names import BASE

FINE_TUNES, WITH_HARMLESS, WITH_PERSONA = "fine-tunes", "harmless fine-tune", "persona direction"
WITH_LATENT, WITH_WORDS, BEST_LATENT = "toxic latent", "same answers in the base", "best latent"
Means = Mapping[str, Mapping[str, MisalignmentMeans]]  # by fine-tune, by hook


@dataclass(frozen=True)
class _Resampled:
    """A direction, and its unit directions on resampled questions: one row if it does not depend on them."""

    name: str
    kind: str
    direction: Float[Tensor, "d_model"]
    replicates: Float64[Tensor, "replicate d_model"]


def compare_directions(lab: ConvergenceLab, directions: Sequence[NamedDirection], means: Means) -> pd.DataFrame:
    """Cosines of the fine-tunes' directions at every hook, for both contrasts; after `find_means`.

    Returns:
        One row a pair: `hook`, `contrast`, `first` (a fine-tune), `relation` (to another fine-tune; to a harmless one;
        to the difference that the same answers make in the base; at the run's hook to the base's persona direction and
        the toxic latent's decoder row), `second`, `cosine` with `low` and `high` (95% bootstrap over the selection
        questions; persona direction and latent stay as they are), and `chance`: 95% of random directions with the
        covariance of the base's activations have a smaller absolute cosine. Directions that are zero have no rows.

        A replicate has the noise of the questions twice, which pulls its cosines towards 0: a very high cosine may lie
        at the upper end of its interval, or above.
    """
    rows = []
    for hook in lab.hooks:
        chance, fixed = _chance_of_two(lab, hook), _fixed_targets(lab, hook)
        for contrast in CONTRASTS:
            here = [found for found in directions if found.contrast == contrast and found.units[hook].any()]
            of = partial(MisalignmentMeans.contrast, name=contrast)
            resampled = [_resampled(lab, found.name, found.kind, hook, found.units[hook], of) for found in here]
            pairs = [row | {"chance": chance} for row in _between_directions(resampled)]
            for one in (one for one in resampled if one.kind == FINE_TUNE):
                words = _resampled(lab, one.name, BASE, hook, means[one.name][hook].in_base, lambda m: m.in_base)
                pairs += _with_targets(one, {**fixed, WITH_WORDS: (words, chance)})
            rows += [{"hook": hook, "contrast": contrast} | row for row in pairs]
    return pd.DataFrame(rows)


def _with_targets(one: _Resampled, targets: Mapping[str, tuple[_Resampled, float]]) -> list[dict[str, Any]]:
    """A fine-tune with what does not belong to another one; each target with its chance cosine."""
    return [
        _pair(one, relation, target) | {"second": BASE, "chance": chance}
        for relation, (target, chance) in targets.items()
    ]


def _resampled(
    lab: ConvergenceLab,
    name: str,
    kind: str,
    hook: str,
    direction: Float[Tensor, "d_model"],
    of: Callable[[MisalignmentMeans], Tensor],
) -> _Resampled:
    return _Resampled(name, kind, direction, question_sums(lab, name, hook).resampled(of, lab.seed))


def _between_directions(directions: Sequence[_Resampled]) -> list[dict[str, Any]]:
    """Every fine-tune with those after it and with the harmless ones."""
    return [
        _pair(one, FINE_TUNES if other.kind == FINE_TUNE else WITH_HARMLESS, other)
        for place, one in enumerate(directions)
        for other in directions[place + 1 :]
        if one.kind == FINE_TUNE
    ]


def _pair(one: _Resampled, relation: str, other: _Resampled) -> dict[str, Any]:
    low, high = percentile_interval((one.replicates * other.replicates).sum(1).numpy())
    cosine = _cosine(one.direction, other.direction)
    return {"first": one.name, "relation": relation, "second": other.name, "cosine": cosine, "low": low, "high": high}


def compare_adapters(lab: ConvergenceLab, directions: Sequence[NamedDirection]) -> pd.DataFrame:
    """What the blocks of every rank-1 adapter of the set can write, compared with directions and latents.

    Returns:
        One row a block and target: `member`, `kind`, `hook` after the block, `target` (the mean direction of the
        fine-tunes other than this one, for each contrast; the base's persona direction, the toxic latent's decoder row
        and the nearest latent's, all three from the run's hook, as all blocks write to one stream), `cosine`
        (absolute: the sign of B means nothing), `chance` as in `compare_directions` (for the nearest latent: of the one
        nearest to a random direction), `latent`, and its `rank` among all latents by cosine.
    """
    rows: list[dict[str, Any]] = []
    for member in lab.models.final:
        adapter = member.checkpoint.adapter
        if adapter is None or not Path(adapter).is_dir():
            continue
        for hook, written in written_vectors(Path(adapter)).items():
            named = {"member": member.name, "kind": member.kind, "hook": hook}
            targets = _targets(lab, hook, member.name, directions)
            found = [
                {"target": name, "cosine": abs(_cosine(written, unit)), "chance": chance}
                for name, (unit, chance) in targets.items()
            ]
            rows += [named | row for row in (*found, *_nearest_latents(lab, hook, written))]
    columns = ["member", "kind", "hook", "target", "cosine", "chance", "latent", "rank"]
    return pd.DataFrame(rows, columns=columns).astype({"latent": "Int64", "rank": "Int64"})


def _targets(
    lab: ConvergenceLab, hook: str, member: str, directions: Sequence[NamedDirection]
) -> dict[str, tuple[Tensor, float]]:
    """Directions at a hook with their chance cosines; of the fine-tunes the mean without `member`."""
    targets = {WITH_PERSONA: lab.direction}
    others = [found for found in directions if found.kind == FINE_TUNE and found.name != member]
    for contrast in CONTRASTS:
        units = [found.units[hook] for found in others if found.contrast == contrast]
        targets[contrast] = torch.stack(units).mean(0)
    return {name: (unit, _chance(lab, hook, unit[None])) for name, unit in targets.items()}


def _nearest_latents(lab: ConvergenceLab, hook: str, written: Tensor) -> list[dict[str, Any]]:
    """The latent nearest to what is written, and the toxic one."""
    decoder = lab.sae.W_dec.detach()
    found = cosines(decoder, written[None].to(decoder.device))[:, 0].abs()
    order = found.argsort(descending=True, stable=True).tolist()
    wanted = {BEST_LATENT: (order[0], decoder)}
    if lab.toxic is not None:
        wanted[WITH_LATENT] = (lab.toxic, decoder[lab.toxic][None])
    return [
        {
            "target": target,
            "cosine": float(found[latent]),
            "chance": _chance(lab, hook, rows),
            "latent": latent,
            "rank": order.index(latent) + 1,
        }
        for target, (latent, rows) in wanted.items()
    ]


def _fixed_targets(lab: ConvergenceLab, hook: str) -> dict[str, tuple[_Resampled, float]]:
    """What all directions are compared with, at the hook where the run found it; and its chance cosine."""
    if hook != lab.hook:
        return {}
    targets = {WITH_PERSONA: lab.direction}
    if lab.toxic is not None:
        targets[WITH_LATENT] = lab.sae.W_dec[lab.toxic].detach()
    return {
        relation: (_Resampled(BASE, BASE, target, unit_rows(target[None]).cpu()), _chance(lab, hook, target[None]))
        for relation, target in targets.items()
    }


def _chance(lab: ConvergenceLab, hook: str, targets: Float[Tensor, "target d_model"]) -> float:
    return chance_cosine(lab.base_rows[hook], targets.cpu(), lab.config.draws, lab.seed)


def _chance_of_two(lab: ConvergenceLab, hook: str) -> float:
    return chance_cosine_of_two(lab.base_rows[hook], lab.config.draws, lab.seed)


def _cosine(one: Float[Tensor, "d_model"], other: Float[Tensor, "d_model"]) -> float:
    return float(cosines(one[None].cpu(), other[None].cpu()))
