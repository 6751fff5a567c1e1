"""A finished store, opened for reading."""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from activations.artefact import MANIFEST, file_hash, read_config
from activations.display import html_table
from activations.errors import UserError
from activations.prompts import Role
from activations.shuffle import Group, Pool
from activations.source import CHUNK_ROWS, ActivationSource, Index
from activations.store.layout import (
    INDEX,
    KIND,
    Manifest,
    Shard,
    from_disk,
    read_activations,
    read_index,
    read_manifest,
    read_prompt_ids,
    shard_layout,
)
from activations.store.read_ahead import read_ahead, shared_buffers

READ_AHEAD_BYTES = 1 << 30


class ActivationStore(ActivationSource):
    """Activations that a harvest wrote; see `activations.store.layout` for the files.

    Attributes:
        folder: Where it lies.
        manifest: Its shards.
    """

    def __init__(self, folder: Path, config: dict[str, Any], manifest: Manifest) -> None:
        """Use `load`."""
        self.folder = folder
        self.name = str(folder)
        self.config = config
        self.manifest = manifest
        self._verified: set[int] = set()

    @classmethod
    def load(cls, folder: Path | str) -> "ActivationStore":
        """Opens a finished store.

        Sizes and structure of all shards are checked here; a shard's checksum when it is first read, or by `verify`.

        Raises:
            UserError: if the folder is not a finished store, or a shard is missing, truncated or foreign.
        """
        folder = Path(folder)
        store = cls(folder, read_config(folder, KIND), read_manifest(folder / MANIFEST))
        for shard in store.manifest.shards:
            store._check(shard)
        return store

    @property
    def origin(self) -> Path:
        return self.folder

    @property
    def shards(self) -> int:
        return len(self.manifest.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.manifest.shards)

    @cached_property
    def prompt_ids(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        ids: dict[int, str] = {}
        for shard in self.manifest.shards:
            with self._open(shard) as file:
                ids |= {shard.first_prompt + number: id for number, id in read_prompt_ids(file).items()}
        if sorted(ids) != list(range(len(ids))):
            raise UserError(f"{self.folder} lacks prompts: their numbers have gaps; {self._remedy}.")
        return tuple(ids[number] for number in range(len(ids)))

    def _repr_html_(self) -> str:
        about = {
            "model": self.config.get("model", "unknown"),
            "hooks": ", ".join(f"{hook} ({width})" for hook, width in self.config["hooks"].items()),
            "rows": self.rows,
            "number format": self.manifest.dtype,
            "shards": self.shards,
            "bytes": self.bytes,
        }
        return html_table(f"ActivationStore {self.folder}", ("property", "value"), about.items())

    def verify(self) -> None:
        """Compares every shard with its checksum.

        Raises:
            UserError: naming the first shard that changed since it was written.
        """
        self._verified.clear()
        for shard in self.manifest.shards:
            self._verify(shard)

    def shard(self, number: int, hook: str) -> Shaped[Tensor, "rows d_model"]:
        with self._open(self.manifest.shards[number]) as file:
            return from_disk(read_activations(file, hook), self.manifest.dtype)

    def role_counts(self, number: int) -> Sequence[int]:
        return self.manifest.shards[number].roles

    def shard_index(self, number: int) -> Index:
        shard = self.manifest.shards[number]
        with self._open(shard) as file:
            index = read_index(file)
        return {**index, "prompt": index["prompt"] + shard.first_prompt}

    def shard_roles(self, number: int) -> Integer[np.ndarray, "rows"]:
        with self._open(self.manifest.shards[number]) as file:
            return read_index(file, ("role",))["role"]

    def _pools(
        self, groups: Iterator[Group], hook: str, roles: Collection[Role] | None, most_rows: int
    ) -> Iterator[Pool]:
        """Large stores are read ahead; small ones are not worth a process."""
        if self.bytes < READ_AHEAD_BYTES:
            return super()._pools(groups, hook, roles, most_rows)
        # HDF5 pads the last chunk of a shard.
        shape = (most_rows + CHUNK_ROWS, self.d_model(hook))
        buffers = shared_buffers(shape, getattr(torch, self.manifest.dtype))
        return read_ahead(groups, lambda group, buffer: self._fill(group, buffer, hook, roles), buffers, self.name)

    def _fill(self, group: Group, buffer: Tensor, hook: str, roles: Collection[Role] | None) -> Pool:
        """Reads a group's shards into a buffer, one after another."""
        raw, start = (buffer.view(torch.uint16) if buffer.dtype == torch.bfloat16 else buffer).numpy(), 0
        for number in group.shards:
            shard = self.manifest.shards[number]
            with self._open(shard) as file:
                read_activations(file, hook, out=raw[start:])
            start += shard.rows
        return Pool(buffer[:start], self._order(group, roles))

    def _open(self, shard: Shard) -> h5py.File:
        if shard.number not in self._verified:
            self._verify(shard)
        return h5py.File(self.folder / shard.file, "r")

    def _verify(self, shard: Shard) -> None:
        path = self.folder / shard.file
        self._check(shard)
        if (found := file_hash(path)) != shard.checksum:
            raise UserError(
                f"{path} is damaged: its checksum is {found}, the manifest says {shard.checksum}; {self._remedy}."
            )
        self._verified.add(shard.number)

    def _check(self, shard: Shard) -> None:
        """Size and structure of a shard."""
        path = self.folder / shard.file
        if not path.is_file():
            raise UserError(f"{path} is missing; {self._remedy}.")
        if (size := path.stat().st_size) != shard.bytes:
            raise UserError(f"{path} has {size} bytes, the manifest says {shard.bytes}; {self._remedy}.")
        try:
            with h5py.File(path, "r") as file:
                found = shard_layout(file, self.hooks)
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is not a shard of activations ({error}); {self._remedy}.") from None
        chunk = min(CHUNK_ROWS, shard.rows)
        wanted = {hook: ((shard.rows, d_model), (chunk, d_model)) for hook, d_model in self.config["hooks"].items()}
        wanted |= dict.fromkeys(INDEX, ((shard.rows,), None))
        if found != wanted:
            raise UserError(f"{path} is not laid out as the manifest says; {self._remedy}.")

    @property
    def _remedy(self) -> str:
        return f"delete {self.folder} and harvest again"
