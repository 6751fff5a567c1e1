"""How activations lie on disk: HDF5 shards that plain h5py reads, and the manifest that lists them.

    config.json      written last; its presence says that the store is whole
    provenance.json  commit, versions, time, content hashes of parents
    manifest.json    the shards: number, file, rows, bytes, xxh3_128 checksum, hash of their tokens
    shard-00000.h5   activations/{hook}  (rows, d_model)  float32, float16, or uint16 with attribute dtype="bfloat16"
                     token               (rows,)          int32
                     prompt              (rows,)          int32, the number of the row's prompt
                     position            (rows,)          int32, within the prompt
                     role                (rows,)          uint8, see `activations.prompts.Role`
                     prompts/number      (prompts,)       int32, the prompts that the shard holds ...
                     prompts/id          (prompts,)       utf-8 strings, ... and their ids

bfloat16 is stored as its bit pattern because HDF5's own bfloat16 is converted in software; `uint16 << 16` viewed as
float32 restores it exactly. Activations are written and read by whole chunks: HDF5's row selection is hundreds of times
slower for single rows, and slower for many.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from activations.artefact import MANIFEST, file_hash, read_json, sync
from activations.config import StoreDtype
from activations.errors import UserError
from activations.source import CHUNK_ROWS, Index
from activations.tokens import add_hashes

KIND = "activation_store"
VERSION = 2
INDEX: dict[str, type[np.generic]] = {"token": np.int32, "prompt": np.int32, "position": np.int32, "role": np.uint8}


_UNBUFFERED = "unbuffered"


def _set_unbuffered(access: h5py.h5p.PropFAID) -> None:
    """Small datasets reach the disk when they are written: a full disk at their closing is the death of HDF5 2.0."""
    access.set_fapl_sec2()
    access.set_sieve_buf_size(0)


h5py.register_driver(_UNBUFFERED, _set_unbuffered)


class Shard(BaseModel):
    """One line of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(description="Place in the order of rows.")
    file: str = Field(description="File, relative to the store's folder.")
    rows: int = Field(description="Rows in each of its datasets.")
    bytes: int = Field(description="Size of the file.")
    checksum: str = Field(description="xxh3_128 of the file, hex.")
    roles: tuple[int, ...] = Field(description="Rows of each `activations.prompts.Role`.")
    tokens_hash: str = Field(description="Hash of the prompts that it holds (`activations.tokens.add_hashes`).")
    first_prompt: int = Field(default=0, description="Added to its prompt numbers (merged stores).")


class Manifest(BaseModel):
    """What a store, or one writer's share of it, holds so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=VERSION, description="Version of the layout.")
    hooks: dict[str, int] = Field(description="d_model of each hook.")
    dtype: StoreDtype = Field(description="Number format of the activations.")
    config: dict[str, Any] = Field(description="What was asked for; whoever resumes must ask for the same.")
    shards: tuple[Shard, ...] = Field(default=(), description="Shards that are whole, by number.")
    total: int | None = Field(default=None, description="Shards of the whole store; unknown until all text is read.")
    tokens_hash: str | None = Field(default=None, description="Hash of all its prompts; unknown until then, too.")

    @property
    def complete(self) -> bool:
        """Whether every shard of the store is there."""
        return self.total is not None and [shard.number for shard in self.shards] == list(range(self.total))

    @property
    def consistent(self) -> bool:
        """Whether the shards that are there can be those of one harvest."""
        beyond = self.total is not None and any(shard.number >= self.total for shard in self.shards)
        other = self.complete and self.tokens_hash != add_hashes(shard.tokens_hash for shard in self.shards)
        return not beyond and not other

    def same_activations(self, other: "Manifest") -> bool:
        """Whether both describe the same activations; "model", a display name, may differ: folders are moved."""
        ours, theirs = ((m.hooks, m.dtype, _without_name(m.config)) for m in (self, other))
        read = [(m.total, m.tokens_hash) for m in (self, other) if m.total is not None]
        return ours == theirs and len(set(read)) < 2

    def joined(self, other: "Manifest") -> "Manifest":
        """Both writers' shards; where both have one, this one's."""
        shards = {shard.number: shard for shard in (*other.shards, *self.shards)}
        known = self if self.total is not None else other
        read = {"total": known.total, "tokens_hash": known.tokens_hash}
        return self.model_copy(update={"shards": tuple(shards[n] for n in sorted(shards)), **read})


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        UserError: if it is missing, damaged, or of another version.
    """
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path} has version {version}, this code reads version {VERSION}; "
            "harvest again, or read it with the code that wrote it."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is damaged at '{where}'; delete {path.parent} and harvest again.") from None


def part_manifests(folder: Path) -> list[Path]:
    """Manifests of writers that have not finished the store together yet."""
    return sorted(folder.glob(f"{Path(MANIFEST).stem}.*-of-*.json"))


def to_disk(activations: Shaped[Tensor, "rows d_model"], dtype: StoreDtype) -> np.ndarray:
    """Rows in the store's number format, bfloat16 as its bit pattern."""
    rows = activations.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return rows.view(torch.uint16).numpy() if dtype == "bfloat16" else rows.numpy()


def from_disk(rows: np.ndarray, dtype: StoreDtype) -> Shaped[Tensor, "rows d_model"]:
    """What `to_disk` was given, in the store's number format."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def write_shard(
    path: Path, activations: Mapping[str, np.ndarray], index: Index, prompts: Mapping[int, str], dtype: StoreDtype
) -> str:
    """Writes a shard, durably; returns its checksum, which is computed while the disk is busy with it."""
    # The default `libver` on purpose: a file of "latest" does not open again after a kill.
    with h5py.File(path, "w", driver=_UNBUFFERED) as file:
        for hook, rows in activations.items():
            dataset = _write_chunks(file, f"activations/{hook}", rows)
            if dtype == "bfloat16":
                dataset.attrs["dtype"] = dtype
        for name, column in index.items():
            file.create_dataset(name, data=column)
        file.create_dataset("prompts/number", data=np.array(list(prompts), dtype=np.int32))
        file.create_dataset("prompts/id", data=list(prompts.values()), dtype=h5py.string_dtype())
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(sync, path)
        checksum = file_hash(path)
        synced.result()
    return checksum


def read_activations(file: h5py.File, hook: str, out: np.ndarray | None = None) -> np.ndarray:
    """All rows of a shard at a hook, as stored; copied straight from the file, faster than HDF5's own selection.

    Args:
        file: An open shard.
        hook: Whose activations.
        out: Filled if given: at least as many rows as whole chunks have, of the stored type.

    Returns:
        The shard's rows: a view of `out` where that is given.
    """
    dataset = dataset_of(file, f"activations/{hook}")
    rows, chunk = len(dataset), (dataset.chunks or (1,))[0]
    if out is None:
        out = np.empty((-(-rows // chunk) * chunk, dataset.shape[1]), dtype=dataset.dtype)
    for start in range(0, rows, chunk):
        # The last chunk of a shard is padded in the file.
        part = out[start : start + chunk].reshape(-1).view(np.uint8)
        dataset.id.read_direct_chunk((start, 0), out=part)
    return out[:rows]


def read_index(file: h5py.File, columns: Collection[str] = INDEX) -> Index:
    """Some of the columns token, prompt, position and role of a shard."""
    return {name: np.asarray(dataset_of(file, name)[:]) for name in columns}


def read_prompt_ids(file: h5py.File) -> dict[int, str]:
    """Number and id of every prompt that a shard holds."""
    numbers, ids = dataset_of(file, "prompts/number"), dataset_of(file, "prompts/id")
    return dict(zip(numbers[:].tolist(), map(str, ids.asstr()[:]), strict=True))


def shard_layout(file: h5py.File, hooks: Collection[str]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Shape and chunk of every dataset that has a value a row.

    Raises:
        KeyError: if one is missing.
    """
    datasets = {hook: dataset_of(file, f"activations/{hook}") for hook in hooks}
    datasets |= {name: dataset_of(file, name) for name in INDEX}
    dataset_of(file, "prompts/id")
    return {name: (dataset.shape, dataset.chunks) for name, dataset in datasets.items()}


def dataset_of(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of a file.

    Raises:
        KeyError: if there is none of that name.
    """
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return dataset


def _write_chunks(file: h5py.File, name: str, rows: np.ndarray) -> h5py.Dataset:
    """A dataset written chunk by chunk, past HDF5's own copying."""
    chunk = min(CHUNK_ROWS, len(rows))
    dataset = file.create_dataset(name, rows.shape, rows.dtype, chunks=(chunk, rows.shape[1]))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        if len(part) < chunk:
            part = np.concatenate([part, np.zeros((chunk - len(part), rows.shape[1]), rows.dtype)])
        dataset.id.write_direct_chunk((start, 0), np.ascontiguousarray(part))
    return dataset


def _without_name(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model"}
