"""The order of shuffled reading: a function of seed and position alone, so that it can be resumed anywhere.

Each epoch puts the shards in random order and cuts it into groups that fit a pool; the rows of a group are drawn in
random order. Row number r of the endless sequence is found from the shards' sizes, without reading what comes before.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from activations.errors import UserError
from activations.prompts import NON_SPECIAL, Role

DEFAULT_POOL_ROWS = 131072


@dataclass(frozen=True)
class Shuffle:
    """Which rows are drawn, in which order.

    Attributes:
        seed: Of the order; equal seeds give equal orders.
        epochs: Passes over the rows; None: no end.
        roles: Positions to draw from; None: every position.
        pool_rows: Rows that are mixed at a time, rounded up to whole shards.
    """

    seed: int = 0
    epochs: int | None = None
    roles: Collection[Role] | None = NON_SPECIAL
    pool_rows: int = DEFAULT_POOL_ROWS


@dataclass(frozen=True)
class Group:
    """Shards whose rows are mixed.

    Attributes:
        shards: Their numbers.
        key: Seed, epoch and number of the group: what decides about the order of its rows.
        skip: Rows at the beginning of that order that were drawn already.
    """

    shards: tuple[int, ...]
    key: tuple[int, int, int]
    skip: int = 0

    def order(self, chosen: Int[np.ndarray, "chosen"]) -> Int[np.ndarray, "drawn"]:
        """The chosen positions in the order in which they are drawn."""
        return np.random.default_rng(self.key).permutation(chosen)[self.skip :]


class Pool(NamedTuple):
    """The rows of a group (shard after shard) and the positions of the chosen ones, in the order they are drawn."""

    rows: Shaped[Tensor, "rows d_model"]
    order: Int[Tensor, "drawn"]


def shuffled_groups(
    rows: Sequence[int], chosen: Sequence[int], shuffle: Shuffle, skip: int, name: str
) -> Iterator[Group]:
    """Groups in the order in which they are read.

    Args:
        rows: Rows of each shard.
        chosen: Rows of each shard that are drawn.
        shuffle: Seed and epochs; shards are added to a group until it has `pool_rows` rows.
        skip: Drawn rows at the beginning of the sequence to leave out.
        name: What the message calls the source.

    Raises:
        UserError: if no row is chosen at all.
    """
    total = sum(chosen)
    if not total:
        raise UserError(f"{name} has no rows of the wanted roles; harvest other prompts.")
    first, skip = divmod(skip, total)
    for epoch in range(first, shuffle.epochs) if shuffle.epochs is not None else count(first):
        order = np.random.default_rng((shuffle.seed, epoch)).permutation(len(rows)).tolist()
        for number, shards in enumerate(_grouped(order, rows, shuffle.pool_rows)):
            drawn = sum(chosen[shard] for shard in shards)
            if skip < drawn:
                yield Group(shards, (shuffle.seed, epoch, number), skip)
            skip = max(0, skip - drawn)


def split_into_batches(
    pools: Iterator[Pool], batch_size: int, reuse: bool
) -> Iterator[Shaped[Tensor, "batch d_model"]]:
    """Batches from pools; a batch may span two of them. With `reuse` all whole ones lie in the same memory."""
    rest: Tensor | None = None
    memory: Tensor | None = None
    for rows, order in pools:
        begin = 0
        if rest is not None:
            begin = batch_size - len(rest)
            rest = torch.cat([rest, rows.index_select(0, order[:begin])])
            if len(rest) < batch_size:
                continue
            yield rest
        end = max(begin, len(order) - (len(order) - begin) % batch_size)
        if reuse and memory is None:
            memory = rows.new_empty(batch_size, rows.shape[1])
        for start in range(begin, end, batch_size):
            # Several times faster than indexing with brackets.
            yield torch.index_select(rows, 0, order[start : start + batch_size], out=memory)
        rest = rows.index_select(0, order[end:]) if end < len(order) else None
    if rest is not None:
        yield rest


def _grouped(order: Sequence[int], rows: Sequence[int], pool_rows: int) -> Iterator[tuple[int, ...]]:
    group: list[int] = []
    for shard in order:
        group.append(shard)
        if sum(rows[s] for s in group) >= pool_rows:
            yield tuple(group)
            group = []
    if group:
        yield tuple(group)
