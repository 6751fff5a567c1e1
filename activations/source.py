"""What the method reads activations from: a store on disk, or a model that computes them when they are asked for.

Both give the same rows in the same shards, so everything built on a source gives the same result from either.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Integer, Shaped
from torch import Tensor

from activations.errors import UserError
from activations.prompts import NON_SPECIAL, Role
from activations.shuffle import Group, Pool, Shuffle, shuffled_groups, split_into_batches

CHUNK_ROWS = 4096
Index = dict[str, np.ndarray]


class ActivationSource(ABC):
    """Activations of one model on given tokens, shard by shard.

    Attributes:
        name: What messages call it.
        config: What was asked for: "hooks", "dtype", "rows", "tokens_hash" and how it was made.
        prompt_ids: Ids of the prompts; the index's column "prompt" points into them.
    """

    name: str
    config: Mapping[str, Any]
    prompt_ids: tuple[str, ...]

    @property
    @abstractmethod
    def shards(self) -> int:
        """Number of shards."""

    @abstractmethod
    def shard(self, number: int, hook: str) -> Shaped[Tensor, "rows d_model"]:
        """A shard's activations at a hook, in the number format of the store."""

    @abstractmethod
    def shard_index(self, number: int) -> Index:
        """A shard's token, prompt, position and role, row by row."""

    @property
    def origin(self) -> Path | None:
        """Its folder on disk, if it lies on disk."""
        return None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks whose activations it has."""
        return tuple(self.config["hooks"])

    @property
    def rows(self) -> int:
        """Positions in all shards."""
        return self.config["rows"]

    @property
    def tokens_hash(self) -> str:
        """Hash of the prompts' ids and tokens."""
        return self.config["tokens_hash"]

    def d_model(self, hook: str) -> int:
        """Width of a hook's activations.

        Raises:
            UserError: if the source lacks the hook.
        """
        if hook not in self.config["hooks"]:
            held = ", ".join(self.hooks)
            raise UserError(f"{self.name} has no activations of {hook}, only of {held}; harvest that hook as well.")
        return self.config["hooks"][hook]

    def same_prompts(self, other: "ActivationSource") -> bool:
        """Whether both hold the same tokens under the same prompt numbers: then their rows can be compared in pairs."""
        return self.tokens_hash == other.tokens_hash and self.prompt_ids == other.prompt_ids

    def index(self) -> pd.DataFrame:
        """Columns token, prompt, position and role, in row order over all shards."""
        parts = [self.shard_index(number) for number in range(self.shards)]
        return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def chunks(self, hook: str) -> Iterator[tuple[Float[Tensor, "rows d_model"], Index]]:
        """All rows in row order, a few thousand at a time; one shard is in memory.

        Yields:
            Activations as float32 (bfloat16 exactly), and the same rows' token, prompt, position and role.
        """
        self.d_model(hook)
        for number in range(self.shards):
            rows, index = self.shard(number, hook), self.shard_index(number)
            for start in range(0, len(rows), CHUNK_ROWS):
                part = slice(start, start + CHUNK_ROWS)
                yield rows[part].float(), {name: column[part] for name, column in index.items()}

    def read(self, hook: str, roles: Collection[Role] | None = NON_SPECIAL) -> Float[Tensor, "rows d_model"]:
        """All rows with one of `roles` (None: every row) in row order, in memory, float32."""
        self.d_model(hook)
        parts = (
            self.shard(number, hook)[torch.from_numpy(self.chosen(number, roles))] for number in range(self.shards)
        )
        return torch.cat([part.float() for part in parts])

    def chosen(self, number: int, roles: Collection[Role] | None) -> Int[np.ndarray, "chosen"]:
        """Positions of a shard's rows with one of `roles` (None: of all its rows)."""
        role = self.shard_roles(number)
        return np.arange(len(role)) if roles is None else np.flatnonzero(np.isin(role, list(roles)))

    def shard_roles(self, number: int) -> Integer[np.ndarray, "rows"]:
        """A shard's roles, row by row."""
        return self.shard_index(number)["role"]

    def role_counts(self, number: int) -> Sequence[int]:
        """Rows of a shard of each `Role`."""
        return np.bincount(self.shard_roles(number), minlength=len(Role)).tolist()

    def batches(
        self,
        hook: str,
        batch_size: int,
        shuffle: Shuffle = Shuffle(),  # noqa: B008 (frozen)
        start: int = 0,
        device: str | torch.device = "cpu",
        reuse: bool = False,
    ) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Shuffled batches; equal seeds give equal batches.

        Shards are read whole in random order, a few at a time into a pool, whose rows are drawn at random until it is
        empty. Every row enters the pool once an epoch.

        Args:
            hook: Whose activations.
            batch_size: Rows in a batch; the last batch of the last epoch may have fewer.
            shuffle: Which rows are drawn, in which order.
            start: Batches to leave out at the beginning, without reading what they hold: resumes an earlier iteration.
            device: Where batches are wanted.
            reuse: Whether a batch may lie where the one before it lay: copy what is to be kept. Twice as fast on a
                CPU, where new memory costs more than the rows that are put into it.

        Yields:
            Rows as float32.

        Raises:
            UserError: if the source lacks the hook, or has no rows of these roles.
        """
        self.d_model(hook)
        counts = [self.role_counts(number) for number in range(self.shards)]
        roles = shuffle.roles
        wanted = range(len(Role)) if roles is None else {int(role) for role in roles}
        rows, chosen = [sum(each) for each in counts], [sum(each[role] for role in wanted) for each in counts]
        skip = start * batch_size
        groups = shuffled_groups(rows, chosen, shuffle, skip, self.name)
        pools = self._pools(groups, hook, roles, min(sum(rows), shuffle.pool_rows + max(rows)))
        return (_placed(rows, torch.device(device)) for rows in split_into_batches(pools, batch_size, reuse))

    def _pools(
        self, groups: Iterator[Group], hook: str, roles: Collection[Role] | None, most_rows: int
    ) -> Iterator[Pool]:
        """The pools of groups that have at most `most_rows` rows."""
        for group in groups:
            rows = torch.cat([self.shard(number, hook) for number in group.shards])
            yield Pool(rows, self._order(group, roles))

    def _order(self, group: Group, roles: Collection[Role] | None) -> Int[Tensor, "drawn"]:
        """Positions in a group's rows of those with one of `roles`, in the order in which they are drawn."""
        sizes = [sum(self.role_counts(number)) for number in group.shards]
        starts = np.cumsum([0, *sizes[:-1]])
        chosen = [start + self.chosen(number, roles) for start, number in zip(starts, group.shards, strict=True)]
        return torch.from_numpy(group.order(np.concatenate(chosen)))


def _placed(rows: Shaped[Tensor, "batch d_model"], device: torch.device) -> Float[Tensor, "batch d_model"]:
    # From pinned memory the copy runs beside the training on the batch before.
    if device.type == "cuda":
        rows = rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device, torch.float32)
