"""Streams several models' activations on the same prompts, a few whole prompts at a time, as means within prompts.

The prompt is the independent unit everywhere (tokens of one prompt are not). Sums run in float64, and nothing that is
kept grows with the number of tokens or prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.source import ActivationSource, Index
from diffing.positions import Positions
from diffing.row_filters import RowIndex, RowMask, rows_at
from sae.encode import ActivePairs, encode_active

# Rows encoded at once, and values of [prompt latent] held for each model and choice of positions.
_BLOCK_ROWS = 8192
_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class PromptMeans:
    """One model on some prompts, at some positions.

    Attributes:
        activity: Mean activation of each latent; NaN for prompts without such positions.
        activation: Mean activation vector, likewise.
        active: Rows on which each latent is active.
        maximum: Largest activation of each latent.
        rows: Number of positions of each prompt.
    """

    activity: Float64[Tensor, "prompt latent"]
    activation: Float64[Tensor, "prompt d_model"]
    active: Int[Tensor, "latent"]
    maximum: Float[Tensor, "latent"]
    rows: Int[Tensor, "prompt"]


@dataclass(frozen=True)
class PositionSums:
    """One model on some prompts, at positions of which only the mean over prompts is wanted.

    Attributes:
        activity: Sum over prompts of each latent's mean activation.
        prompts: Prompts that have such positions.
    """

    activity: Float64[Tensor, "latent"]
    prompts: int


@dataclass(frozen=True)
class PromptBlock:
    """Some prompts: their ids, each model's means, and each model's sums at every further choice of positions."""

    ids: tuple[str, ...]
    means: Mapping[str, PromptMeans]
    sums: Mapping[Positions, Mapping[str, PositionSums]]


def prompt_blocks(
    sae: SAE,
    stores: Mapping[str, ActivationSource],
    hook: str,
    positions: Positions,
    further: Sequence[Positions] = (),
    progress: bool = False,
) -> Iterator[PromptBlock]:
    """Every prompt once, in the order of the stores; each activation is read and encoded once.

    Args:
        sae: Encodes all models' activations.
        stores: Activations by model, all of the same prompts in the same order.
        hook: Hook point.
        positions: Positions that are averaged within each prompt.
        further: Choices of positions of which only the mean over prompts is wanted.
        progress: Shows a bar.

    Raises:
        UserError: if the stores hold other prompts, or the same ones in another order, or the SAE's d_model is not
            that of the activations.
    """
    first = next(iter(stores.values()))
    require_width(sae, stores, hook)
    require_same_tokens(stores)
    keeps: dict[Positions, Callable[[RowIndex], RowMask]] = {
        name: rows_at(first, name) for name in dict.fromkeys((positions, *further))
    }
    with tqdm(total=first.rows, unit=" rows", desc="encode", disable=not progress, leave=False) as bar:
        for number in range(first.shards):
            index = _common_index(number, stores)
            shards = {model: store.shard(number, hook) for model, store in stores.items()}
            for part in _whole_prompts(index, sae.cfg.d_sae):
                here = _Rows.of({name: column[part] for name, column in index.items()}, first.prompt_ids, keeps)
                yield _block(sae, {model: rows[part] for model, rows in shards.items()}, here, positions, further)
                bar.update(part.stop - part.start)


@dataclass(frozen=True)
class _Rows:
    """Which of some rows count for what; `wanted` picks from all of them, the rest is of the wanted ones.

    Attributes:
        ids: Ids of the prompts.
        wanted: Rows that any choice of positions takes.
        prompt: Place of each row's prompt in `ids`.
        masks: Rows that each choice of positions takes.
    """

    ids: tuple[str, ...]
    wanted: Bool[Tensor, "all_rows"]
    prompt: Int[Tensor, "rows"]
    masks: Mapping[Positions, Bool[Tensor, "rows"]]

    @classmethod
    def of(
        cls, index: RowIndex, prompt_ids: tuple[str, ...], keeps: Mapping[Positions, Callable[[RowIndex], RowMask]]
    ) -> "_Rows":
        numbers, local = np.unique(index["prompt"], return_inverse=True)
        masks: dict[Positions, RowMask] = {name: keep(index) for name, keep in keeps.items()}
        wanted = np.logical_or.reduce(list(masks.values()))
        return cls(
            ids=tuple(prompt_ids[number] for number in numbers.tolist()),
            wanted=torch.from_numpy(wanted),
            prompt=torch.from_numpy(local[wanted]),
            masks={name: torch.from_numpy(mask[wanted]) for name, mask in masks.items()},
        )

    def counts(self, positions: Positions) -> Int[Tensor, "prompt"]:
        """Number of positions of each prompt."""
        return torch.bincount(self.prompt[self.masks[positions]], minlength=len(self.ids))


def _block(
    sae: SAE, rows: Mapping[str, Tensor], here: _Rows, positions: Positions, further: Sequence[Positions]
) -> PromptBlock:
    """Every model's rows of some whole prompts, encoded."""
    means: dict[str, PromptMeans] = {}
    sums: dict[Positions, dict[str, PositionSums]] = {name: {} for name in further}
    for model, of_model in rows.items():
        x = of_model[here.wanted].float().to(sae.device)
        pairs = encode_active(sae, x)
        means[model] = _means(x, pairs, here, positions, sae.cfg.d_sae)
        for name in further:
            sums[name][model] = _sums(pairs, here, name, sae.cfg.d_sae)
    return PromptBlock(here.ids, means, sums)


def require_same_tokens(stores: Mapping[str, ActivationSource]) -> None:
    """Checks that the prompts of all models can be paired.

    Raises:
        UserError: if one holds other tokens than the first.
    """
    (reference, first), *others = stores.items()
    for model, store in others:
        if not store.same_prompts(first):
            raise UserError(
                f"The {model} activations ({store.name}) hold other tokens than the {reference}'s ({first.name})"
                "; harvest both models on the same prompts."
            )


def require_width(sae: SAE, stores: Mapping[str, ActivationSource], hook: str) -> None:
    """Checks that an SAE fits the width of all models' activations.

    Raises:
        UserError: if it does not.
    """
    for store in stores.values():
        if sae.cfg.d_in != store.d_model(hook):
            raise UserError(
                f"SAE expects d_model={sae.cfg.d_in}, activations of {hook} have {store.d_model(hook)} ({store.name}); "
                "pick an SAE that was trained on this model and hook, or harvest the model that it was trained on."
            )


def _common_index(number: int, stores: Mapping[str, ActivationSource]) -> Index:
    """A shard's index, if it is that of all stores."""
    (name, first), *others = stores.items()
    index = first.shard_index(number) if number < first.shards else {}
    for model, store in others:
        same = store.shards == first.shards
        if same:
            other = store.shard_index(number)
            same = all(np.array_equal(index[column], other[column]) for column in ("prompt", "position"))
        if not same:
            raise UserError(
                f"The {model} activations ({store.name}) hold the prompts in another order or other shards than the "
                f"{name}'s ({first.name}); harvest both with the same batch_tokens and shard_rows."
            )
    return index


def _whole_prompts(index: RowIndex, latents: int) -> Iterator[slice]:
    """Parts of a shard that hold whole prompts: as many as may be encoded at once, at least one."""
    starts = np.flatnonzero(np.diff(index["prompt"], prepend=-1))
    ends = np.append(starts[1:], len(index["prompt"]))
    most = max(1, _BLOCK_VALUES // latents)
    first = 0
    for place in range(1, len(starts) + 1):
        full = place == len(starts) or place - first == most or ends[place] - starts[first] > _BLOCK_ROWS
        if full:
            yield slice(int(starts[first]), int(ends[place - 1]))
            first = place


def _means(
    x: Float[Tensor, "rows d_model"], pairs: ActivePairs, here: _Rows, positions: Positions, latents: int
) -> PromptMeans:
    """Means over the rows at `positions`, on the device of the pairs."""
    device, prompts = x.device, len(here.ids)
    prompt, mask, counts = (each.to(device) for each in (here.prompt, here.masks[positions], here.counts(positions)))
    row, latent, value = _pairs_at(pairs, mask)
    activity = torch.zeros(prompts * latents, dtype=torch.float64, device=device)
    activity.index_add_(0, prompt[row] * latents + latent, value.double())
    activation = torch.zeros(prompts, x.shape[1], dtype=torch.float64, device=device)
    activation.index_add_(0, prompt[mask], x[mask].double())
    maximum = torch.zeros(latents, dtype=value.dtype, device=device).scatter_reduce_(0, latent, value, "amax")
    return PromptMeans(
        activity=activity.view(prompts, latents).div_(counts[:, None]),
        activation=activation.div_(counts[:, None]),
        active=torch.bincount(latent[value > 0], minlength=latents),
        maximum=maximum,
        rows=counts,
    )


def _sums(pairs: ActivePairs, here: _Rows, positions: Positions, latents: int) -> PositionSums:
    """The mean over a prompt's rows is a sum with weights, so no matrix of prompts and latents is needed."""
    device = pairs.value.device
    prompt, mask, counts = (each.to(device) for each in (here.prompt, here.masks[positions], here.counts(positions)))
    row, latent, value = _pairs_at(pairs, mask)
    activity = torch.zeros(latents, dtype=torch.float64, device=device)
    activity.index_add_(0, latent, value.double() / counts[prompt[row]])
    return PositionSums(activity, int((counts > 0).sum()))


def _pairs_at(pairs: ActivePairs, mask: Bool[Tensor, "rows"]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of the pairs whose row is in the mask."""
    if bool(mask.all()):
        return pairs.row, pairs.latent, pairs.value
    here = mask[pairs.row]
    return pairs.row[here], pairs.latent[here], pairs.value[here]
