"""Activations in memory: another source's, read once, or tensors that one has at hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Shaped
from torch import Tensor
from tqdm import tqdm

from activations.errors import UserError
from activations.prompts import Role
from activations.source import ActivationSource, Index


class InMemory(ActivationSource):
    """Shards in memory; gives the same batches as the source that they were read from.

    Args:
        name: What messages call it.
        config: See `ActivationSource`.
        prompt_ids: Ids of the prompts.
        index: Each shard's token, prompt, position and role.
        rows: For each hook, its shards [rows d_model].
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        prompt_ids: tuple[str, ...],
        index: Sequence[Index],
        rows: Mapping[str, Sequence[Shaped[Tensor, "_ d_model"]]],
    ) -> None:
        self.name, self.config, self.prompt_ids = name, config, prompt_ids
        self._index, self._rows = index, rows

    @classmethod
    def copy_of(cls, source: ActivationSource, hooks: Sequence[str] | None = None, progress: bool = True) -> "InMemory":
        """Reads a source once, in its number format.

        Args:
            source: A store, or a model.
            hooks: Which of its hooks; None: all.
            progress: Shows a bar.

        Raises:
            UserError: if the source lacks a hook.
        """
        widths = {hook: source.d_model(hook) for hook in hooks or source.hooks}
        rows: dict[str, list[Tensor]] = {hook: [] for hook in widths}
        index: list[Index] = []
        for number in tqdm(range(source.shards), desc="reading", unit="shard", disable=not progress, leave=False):
            index.append(source.shard_index(number))
            for hook, shards in rows.items():
                shards.append(source.shard(number, hook))
        return cls(f"{source.name} in memory", {**source.config, "hooks": widths}, source.prompt_ids, index, rows)

    @classmethod
    def of_rows(cls, rows: Mapping[str, Shaped[Tensor, "rows d_model"]], name: str = "rows in memory") -> "InMemory":
        """Tensors by hook, whose rows belong together; they count as one prompt.

        Raises:
            UserError: if they are empty, or have different numbers of rows.
        """
        lengths = {len(tensor) for tensor in rows.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(f"Rows by hook need equal lengths above zero, here are {sorted(lengths)}.")
        count = lengths.pop()
        index = {
            "token": np.zeros(count, dtype=np.int32),
            "prompt": np.zeros(count, dtype=np.int32),
            "position": np.arange(count, dtype=np.int32),
            "role": np.full(count, Role.PROMPT, dtype=np.uint8),
        }
        digest = xxhash.xxh3_128()
        for tensor in rows.values():
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        config = {
            "hooks": {hook: tensor.shape[1] for hook, tensor in rows.items()},
            "dtype": str(next(iter(rows.values())).dtype).removeprefix("torch."),
            "rows": count,
            "tokens_hash": digest.hexdigest(),
        }
        return cls(name, config, (name,), [index], {hook: [tensor] for hook, tensor in rows.items()})

    @property
    def shards(self) -> int:
        return len(self._index)

    def shard(self, number: int, hook: str) -> Shaped[Tensor, "rows d_model"]:
        self.d_model(hook)
        return self._rows[hook][number]

    def shard_index(self, number: int) -> Index:
        return self._index[number]
