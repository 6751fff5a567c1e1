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

from diffing.directions.geometry import cosines, unit_rows
from diffing.directions.lora import written_vectors
from diffing.directions.misalignment import CONTRASTS, MisalignmentMeans
from diffing.directions.random_directions import chance_cosine, chance_cosine_of_two
from diffing.statistics.intervals import percentile_interval
from experiments.convergence.config import FINE_TUNE, ConvergenceLab
from experiments.convergence.members import question_sums
from experiments.frame.trials import NamedDirection
from experiments.model_set import ModelSet
from experiments.names import BASE

FINE_TUNES, WITH_HARMLESS, WITH_PERSONA = "fine-tunes", "harmless fine-tune", "persona direction"
WITH_LATENT, WITH_WORDS, BEST_LATENT = "toxic latent", "same answers in the base", "best latent"
Means = Mapping[str, Mapping[str, MisalignmentMeans]]  # by fine-tune, by hook


@dataclass(frozen=True)
class _Drawn:
    """A direction, and its unit directions when the questions are drawn anew: one row if it does not depend on them."""

    name: str
    kind: str
    direction: Float[Tensor, "d_model"]
    replicates: Float64[Tensor, "replicate d_model"]


def compare_directions(lab: ConvergenceLab, sources: Sequence[NamedDirection], means: Means) -> pd.DataFrame:
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
            named = {"hook": hook, "contrast": contrast}
            here = [s for s in sources if s.contrast == contrast and s.units[hook].any()]
            of = partial(MisalignmentMeans.contrast, name=contrast)
            drawn = [_drawn(lab, s.name, s.kind, hook, s.units[hook], of) for s in here]
            rows += [named | row | {"chance": chance} for row in _between_sources(drawn)]
            for one in (one for one in drawn if one.kind == FINE_TUNE):
                words = _drawn(lab, one.name, BASE, hook, means[one.name][hook].in_base, lambda m: m.in_base)
                for relation, (target, expected) in {**fixed, WITH_WORDS: (words, chance)}.items():
                    rows.append(named | _pair(one, relation, target) | {"second": BASE, "chance": expected})
    return pd.DataFrame(rows)


def _drawn(
    lab: ConvergenceLab,
    name: str,
    kind: str,
    hook: str,
    direction: Float[Tensor, "d_model"],
    of: Callable[[MisalignmentMeans], Tensor],
) -> _Drawn:
    return _Drawn(name, kind, direction, question_sums(lab, name, hook).resampled(of, lab.run.config.seed))


def _between_sources(sources: Sequence[_Drawn]) -> list[dict[str, Any]]:
    """Every fine-tune with those after it and with the harmless ones."""
    return [
        _pair(one, FINE_TUNES if other.kind == FINE_TUNE else WITH_HARMLESS, other)
        for place, one in enumerate(sources)
        for other in sources[place + 1 :]
        if one.kind == FINE_TUNE
    ]


def _pair(one: _Drawn, relation: str, other: _Drawn) -> dict[str, Any]:
    low, high = percentile_interval((one.replicates * other.replicates).sum(1).numpy())
    cosine = _cosine(one.direction, other.direction)
    return {"first": one.name, "relation": relation, "second": other.name, "cosine": cosine, "low": low, "high": high}


def compare_adapters(lab: ConvergenceLab, models: ModelSet, sources: Sequence[NamedDirection]) -> pd.DataFrame:
    """What the blocks of every rank-1 adapter of the set can write, beside directions and latents.

    Returns:
        One row a block and target: `member`, `kind`, `hook` after the block, `target` (the mean direction of the
        fine-tunes other than this one, for each contrast; the base's persona direction, the toxic latent's decoder row
        and the nearest latent's, all three from the run's hook, as all blocks write to one stream), `cosine`
        (absolute: the sign of B means nothing), `chance` as in `compare_directions` (for the nearest latent: of the one
        nearest to a random direction), `latent`, and its `rank` among all latents by cosine.
    """
    rows: list[dict[str, Any]] = []
    for member in models.final:
        adapter = member.checkpoint.adapter
        if adapter is None or not Path(adapter).is_dir():
            continue
        for hook, written in written_vectors(Path(adapter)).items():
            named = {"member": member.name, "kind": member.kind, "hook": hook}
            targets = _targets(lab, hook, member.name, sources)
            found = [
                {"target": name, "cosine": abs(_cosine(written, unit)), "chance": chance}
                for name, (unit, chance) in targets.items()
            ]
            rows += [named | row for row in (*found, *_nearest_latents(lab, hook, written))]
    columns = ["member", "kind", "hook", "target", "cosine", "chance", "latent", "rank"]
    return pd.DataFrame(rows, columns=columns).astype({"latent": "Int64", "rank": "Int64"})


def _targets(
    lab: ConvergenceLab, hook: str, member: str, sources: Sequence[NamedDirection]
) -> dict[str, tuple[Tensor, float]]:
    """Directions at a hook with their chance cosines; of the fine-tunes the mean without `member`."""
    targets = {WITH_PERSONA: lab.run.unit()}
    for contrast in CONTRASTS:
        units = [s.units[hook] for s in sources if s.kind == FINE_TUNE and s.contrast == contrast and s.name != member]
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


def _fixed_targets(lab: ConvergenceLab, hook: str) -> dict[str, tuple[_Drawn, float]]:
    """What all directions are compared with, at the hook where the run found it; and its chance cosine."""
    if hook != lab.run.config.hook:
        return {}
    targets = {WITH_PERSONA: lab.run.unit()}
    if lab.toxic is not None:
        targets[WITH_LATENT] = lab.sae.W_dec[lab.toxic].detach()
    return {
        relation: (_Drawn(BASE, BASE, target, unit_rows(target[None]).cpu()), _chance(lab, hook, target[None]))
        for relation, target in targets.items()
    }


def _chance(lab: ConvergenceLab, hook: str, targets: Float[Tensor, "target d_model"]) -> float:
    return chance_cosine(lab.rows[hook], targets.cpu(), lab.config.draws, lab.run.config.seed)


def _chance_of_two(lab: ConvergenceLab, hook: str) -> float:
    return chance_cosine_of_two(lab.rows[hook], lab.config.draws, lab.run.config.seed)


def _cosine(one: Float[Tensor, "d_model"], other: Float[Tensor, "d_model"]) -> float:
    return float(cosines(one[None].cpu(), other[None].cpu()))
