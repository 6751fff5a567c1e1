"""Activations on disk: a folder of HDF5 shards that plain h5py reads.

    config.json      written last; its presence says that the store is whole
    provenance.json  commit, versions, time, content hashes of parents
    manifest.json    the shards that are whole: name, rows, bytes, xxh3_128 checksum, batches
    shard-00000.h5   activations/{hook}  (rows, d_model)  float32, float16, or uint16 with attribute dtype="bfloat16"
                     token               (rows,)          int32
                     prompt              (rows,)          int32, an index into the "prompt_ids" of config.json
                     position            (rows,)          int32, within the prompt
                     role                (rows,)          uint8, see `activations.prompts.Role`

A shard is written under a hidden temporary name, flushed, synced, renamed, and then listed in the manifest, which is
itself replaced in one step: a kill at any moment loses at most the shard being written. Shards hold whole batches, so
a writer that finds an unfinished folder goes on after the last listed batch, and ends with the same bytes.

bfloat16 is stored as its bit pattern because HDF5's own bfloat16 is converted in software; `uint16 << 16` viewed as
float32 restores it exactly. Rows are read by whole chunks: HDF5 reads single rows hundreds of times slower.
"""

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from activations.artefact import CONFIG, file_hash, finish_artefact, publish, read_config, read_json, write_json
from activations.errors import UserError
from activations.prompts import NON_SPECIAL, Role

KIND = "activation_store"
StoreDtype = Literal["float32", "bfloat16", "float16"]

_VERSION = 1
_MANIFEST = "manifest.json"
_LOCK = ".lock"
_CHUNK_ROWS = 4096
_POOL_CHUNKS = 16  # chunks that the shuffle of `batches` mixes at a time
_INDEX: dict[str, type[np.generic]] = {"token": np.int32, "prompt": np.int32, "position": np.int32, "role": np.uint8}

Index = dict[str, np.ndarray]


class _Shard(BaseModel):
    """One line of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="File name within the store's folder.")
    rows: int = Field(description="Rows in each of its datasets.")
    bytes: int = Field(description="Size of the file.")
    checksum: str = Field(description="xxh3_128 of the file, hex.")
    batches: int = Field(description="Batches of the writer that the shard holds.")


class _Manifest(BaseModel):
    """What a store's folder holds so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(description="Version of the layout.")
    hooks: dict[str, int] = Field(description="d_model of each hook.")
    dtype: StoreDtype = Field(description="Number format of the activations.")
    config: dict[str, Any] = Field(description="What was asked for; a resuming writer must ask for the same.")
    shards: tuple[_Shard, ...] = Field(description="Shards that are whole, in row order.")


class StoreWriter:
    """Writes a store, shard by shard; goes on where an earlier writer of the same store was stopped.

    Use it as a context manager: leaving it without `close` keeps what was written so far and frees the folder.
    """

    def __init__(
        self,
        folder: Path,
        hooks: Mapping[str, int],
        dtype: StoreDtype,
        config: Mapping[str, Any],
        shard_rows: int = 65536,
    ) -> None:
        """Opens a folder for writing.

        Args:
            folder: New or empty folder, or one that a writer with the same arguments left unfinished.
            hooks: d_model of each hook.
            dtype: Number format on disk.
            config: JSON-able description, with at least "prompt_ids" and "tokens_hash". "model", the display name of
                the checkpoint, may differ between the writer that began and the one that resumes.
            shard_rows: A shard is written as soon as it has this many rows; it may exceed them by part of a batch.

        Raises:
            UserError: if the folder holds something else, is finished, or another process is writing to it.
        """
        if missing := {"prompt_ids", "tokens_hash"} - config.keys():
            raise ValueError(f"Expected config with 'prompt_ids' and 'tokens_hash', missing {sorted(missing)}.")
        self.folder = folder
        self._shard_rows = shard_rows
        self._buffer: list[tuple[dict[str, np.ndarray], Index]] = []
        wanted = _Manifest(version=_VERSION, hooks=dict(hooks), dtype=dtype, config=dict(config), shards=())
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._manifest = _resume(folder, wanted)
        except UserError:
            self.release()
            raise

    @property
    def finished_batches(self) -> int:
        """Batches that are safely on disk: the next to append has this number, counted from 0."""
        return sum(shard.batches for shard in self._manifest.shards)

    def append(
        self,
        activations: Mapping[str, Float[Tensor, "rows d_model"]],
        token: np.ndarray,
        prompt: np.ndarray,
        position: np.ndarray,
        role: np.ndarray,
    ) -> None:
        """Appends one batch.

        Args:
            activations: For each hook of the store, rows of its width.
            token: Token id of each row.
            prompt: Index of each row's prompt in the config's "prompt_ids".
            position: Position of each row within its prompt.
            role: `Role` of each row.
        """
        index = {
            name: np.ascontiguousarray(column, dtype=_INDEX[name])
            for name, column in zip(_INDEX, (token, prompt, position, role), strict=True)
        }
        for hook, d_model in self._manifest.hooks.items():
            if activations[hook].shape != (len(token), d_model):
                shape = tuple(activations[hook].shape)
                raise ValueError(f"Expected activations of {hook} with shape {(len(token), d_model)}, got {shape}.")
        stored = {hook: _to_disk(activations[hook], self._manifest.dtype) for hook in self._manifest.hooks}
        self._buffer.append((stored, index))
        if sum(len(rows["token"]) for _, rows in self._buffer) >= self._shard_rows:
            self._flush()

    def close(self, parents: Mapping[str, Path] | None = None) -> "ActivationStore":
        """Writes what is buffered, declares the store whole, and opens it for reading."""
        if self._buffer:
            self._flush()
        manifest = self._manifest
        sizes = {"rows": sum(shard.rows for shard in manifest.shards)}
        layout = {"kind": KIND, "version": manifest.version, "hooks": manifest.hooks, "dtype": manifest.dtype}
        finish_artefact(self.folder, {**layout, **sizes, **manifest.config}, parents)
        (self.folder / _LOCK).unlink()
        self.release()
        return ActivationStore.load(self.folder)

    def release(self) -> None:
        """Frees the folder for other writers."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _flush(self) -> None:
        number = len(self._manifest.shards)
        path = self.folder / f"shard-{number:05d}.h5"
        temporary = self.folder / f".{path.name}.tmp"
        hooks = {hook: np.concatenate([part[hook] for part, _ in self._buffer]) for hook in self._manifest.hooks}
        index = {name: np.concatenate([part[name] for _, part in self._buffer]) for name in _INDEX}
        _write_shard(temporary, hooks, index, self._manifest.dtype)
        shard = _Shard(
            name=path.name,
            rows=len(index["token"]),
            bytes=temporary.stat().st_size,
            checksum=file_hash(temporary),
            batches=len(self._buffer),
        )
        publish(temporary, path)
        self._manifest = self._manifest.model_copy(update={"shards": (*self._manifest.shards, shard)})
        write_json(self.folder / _MANIFEST, self._manifest.model_dump())
        self._buffer.clear()


class ActivationStore:
    """A finished store, opened for reading.

    Attributes:
        folder: Where it lies.
        config: Its config.json: "hooks", "dtype", "rows", "prompt_ids", "tokens_hash" and what the writer added.
    """

    def __init__(self, folder: Path, config: dict[str, Any], shards: Sequence[_Shard]) -> None:
        """Use `load`."""
        self.folder = folder
        self.config = config
        self._shards = tuple(shards)
        self._verified: set[str] = set()

    @classmethod
    def load(cls, folder: Path | str) -> "ActivationStore":
        """Opens a finished store.

        Sizes and structure of all shards are checked here; a shard's checksum when it is first read, or by `verify`.

        Raises:
            UserError: if the folder is not a finished store, or a shard is missing, truncated or foreign.
        """
        folder = Path(folder)
        config = read_config(folder, KIND)
        manifest = _read_manifest(folder)
        store = cls(folder, config, manifest.shards)
        for shard in manifest.shards:
            store._check(shard)
        return store

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hooks whose activations it holds."""
        return tuple(self.config["hooks"])

    @property
    def rows(self) -> int:
        """Positions in all shards."""
        return sum(shard.rows for shard in self._shards)

    @cached_property
    def prompt_ids(self) -> tuple[str, ...]:
        """Ids of the prompts; the index's column "prompt" points into them."""
        return tuple(self.config["prompt_ids"])

    @property
    def tokens_hash(self) -> str:
        """Hash of the tokens that were read; stores with equal hashes can be compared prompt by prompt."""
        return self.config["tokens_hash"]

    def d_model(self, hook: str) -> int:
        """Width of a hook's activations.

        Raises:
            UserError: if the store lacks the hook.
        """
        if hook not in self.config["hooks"]:
            held = ", ".join(self.hooks)
            raise UserError(f"{self.folder} has no activations of {hook}, only of {held}; harvest that hook as well.")
        return self.config["hooks"][hook]

    def verify(self) -> None:
        """Compares every shard with its checksum.

        Raises:
            UserError: naming the first shard that changed since it was written.
        """
        self._verified.clear()
        for shard in self._shards:
            self._verify(shard)

    def index(self) -> pd.DataFrame:
        """Columns token, prompt, position and role, in row order over all shards."""
        parts = [self._index_of(shard) for shard in self._shards]
        return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in _INDEX})

    def chunks(self, hook: str) -> Iterator[tuple[Float[Tensor, "rows d_model"], Index]]:
        """All rows in row order, a chunk at a time.

        Yields:
            Activations as float32 (bfloat16 exactly), and the same rows' token, prompt, position and role.
        """
        self.d_model(hook)
        for place in self._places():
            yield self._read_chunk(place, hook)

    def read(self, hook: str, roles: Collection[Role] | None = NON_SPECIAL) -> Float[Tensor, "rows d_model"]:
        """All rows with one of `roles` (None: every row) in row order, in memory, float32."""
        parts = [rows[_chosen(index["role"], roles)] for rows, index in self.chunks(hook)]
        return torch.cat(parts)

    def batches(
        self,
        hook: str,
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        roles: Collection[Role] | None = NON_SPECIAL,
    ) -> Iterator[Float[Tensor, "batch d_model"]]:
        """Shuffled batches; equal seeds give equal batches.

        Chunks of all shards are read whole, in random order, into a pool of 16 of them; rows are drawn at random from
        the full pool until half of it is left (method: SAELens, `training/mixing_buffer.py`).
        Every row enters the pool once an epoch.

        Args:
            hook: Whose activations.
            batch_size: Rows in a batch; the last batch of the last epoch may have fewer.
            seed: Of the shuffle.
            epochs: Passes over the store; None: no end.
            roles: Positions to draw from; None: every position.

        Yields:
            Rows as float32.
        """
        generator = torch.Generator().manual_seed(seed)
        least = max(_POOL_CHUNKS * _CHUNK_ROWS, 2 * batch_size)
        pool: list[Tensor] = []
        for rows in self._random_chunks(hook, generator, epochs, roles):
            pool.append(rows)
            held = sum(map(len, pool))
            if held < least:
                continue
            mixed = torch.cat(pool)[torch.randperm(held, generator=generator)]
            out = (held - least // 2) // batch_size * batch_size
            yield from mixed[:out].split(batch_size)
            pool = [mixed[out:]]
        if pool:
            rest = torch.cat(pool)
            yield from rest[torch.randperm(len(rest), generator=generator)].split(batch_size)

    def _random_chunks(
        self, hook: str, generator: torch.Generator, epochs: int | None, roles: Collection[Role] | None
    ) -> Iterator[Float[Tensor, "rows d_model"]]:
        """The chosen rows of every chunk, chunks in random order, once an epoch."""
        self.d_model(hook)
        places = list(self._places())
        for _ in range(epochs) if epochs is not None else count():
            found = 0
            for place in torch.randperm(len(places), generator=generator).tolist():
                rows, index = self._read_chunk(places[place], hook)
                chosen = rows[_chosen(index["role"], roles)]
                found += len(chosen)
                yield chosen
            if not found:
                raise UserError(f"{self.folder} has no rows of the wanted roles at {hook}; harvest other prompts.")

    def _places(self) -> Iterator[tuple[_Shard, int]]:
        """Every chunk: its shard and its first row there."""
        return ((shard, start) for shard in self._shards for start in range(0, shard.rows, _CHUNK_ROWS))

    def _read_chunk(self, place: tuple[_Shard, int], hook: str) -> tuple[Float[Tensor, "rows d_model"], Index]:
        # Opening a shard for each chunk costs less than reading it does, and no store is too large for the open files.
        shard, start = place
        with self._open(shard) as file:
            rows = _read_rows(_dataset(file, f"activations/{hook}"), start)
            return rows, _read_index(file, slice(start, start + len(rows)))

    def _index_of(self, shard: _Shard) -> Index:
        with self._open(shard) as file:
            return _read_index(file, slice(None))

    def _open(self, shard: _Shard) -> h5py.File:
        if shard.name not in self._verified:
            self._verify(shard)
        return h5py.File(self.folder / shard.name, "r")

    def _verify(self, shard: _Shard) -> None:
        path = self.folder / shard.name
        self._check(shard)
        if (found := file_hash(path)) != shard.checksum:
            raise UserError(
                f"{path} is damaged: its checksum is {found}, the manifest says {shard.checksum}; {self._remedy}."
            )
        self._verified.add(shard.name)

    def _check(self, shard: _Shard) -> None:
        """Size and structure of a shard."""
        path = self.folder / shard.name
        if not path.is_file():
            raise UserError(f"{path} is missing; {self._remedy}.")
        if (size := path.stat().st_size) != shard.bytes:
            raise UserError(f"{path} has {size} bytes, the manifest says {shard.bytes}; {self._remedy}.")
        try:
            with h5py.File(path, "r") as file:
                found = _layout(file, self.hooks)
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is not a shard of activations ({error}); {self._remedy}.") from None
        chunk = min(_CHUNK_ROWS, shard.rows)
        wanted = {hook: ((shard.rows, d_model), (chunk, d_model)) for hook, d_model in self.config["hooks"].items()}
        wanted |= dict.fromkeys(_INDEX, ((shard.rows,), None))
        if found != wanted:
            raise UserError(f"{path} is not laid out as the manifest says; {self._remedy}.")

    @property
    def _remedy(self) -> str:
        return f"delete {self.folder} and harvest again"


def _lock(folder: Path) -> int:
    """An exclusive lock on the folder, which the system frees when the process ends, however it ends."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"Another process is writing to {folder}; wait for it or choose another folder.") from None
    return descriptor


def _resume(folder: Path, wanted: _Manifest) -> _Manifest:
    """The manifest to go on with: the folder's own if it is an unfinished store of the same activations."""
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds a finished artefact; choose another folder or --overwrite.")
    if not (folder / _MANIFEST).exists():
        if foreign := sorted(path.name for path in folder.iterdir() if not _ours(path)):
            raise UserError(f"{folder} is in use: it holds {foreign[0]}; choose another folder or --overwrite.")
        write_json(folder / _MANIFEST, wanted.model_dump())
        return wanted
    found = _read_manifest(folder)
    if not _same_activations(found, wanted):
        raise UserError(f"{folder} holds other activations; choose another folder or --overwrite.")
    return found


def _ours(path: Path) -> bool:
    """Whether a file may lie in a folder whose writer was killed before its first manifest."""
    return path.name in (_LOCK, f".{_MANIFEST}.tmp")


def _same_activations(one: _Manifest, other: _Manifest) -> bool:
    # A folder of checkpoints may have been moved between the two: the display name says nothing.
    return all(
        getattr(one, field) == getattr(other, field) for field in ("version", "hooks", "dtype")
    ) and _without_name(one.config) == _without_name(other.config)


def _without_name(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "model"}


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise UserError(
            f"{path} has version {version}, this code reads version {_VERSION}; "
            "harvest again, or read it with the code that wrote it."
        )
    try:
        return _Manifest.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is damaged at '{where}'; delete {folder} and harvest again.") from None


def _to_disk(activations: Float[Tensor, "rows d_model"], dtype: StoreDtype) -> np.ndarray:
    rows = activations.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return rows.view(torch.uint16).numpy() if dtype == "bfloat16" else rows.numpy()


def _write_shard(path: Path, hooks: Mapping[str, np.ndarray], index: Index, dtype: StoreDtype) -> None:
    # The default `libver` on purpose: a file of "latest" does not open again after a kill.
    with h5py.File(path, "w") as file:
        for hook, rows in hooks.items():
            chunk = (min(_CHUNK_ROWS, len(rows)), rows.shape[1])
            dataset = file.create_dataset(f"activations/{hook}", data=rows, chunks=chunk)
            if dtype == "bfloat16":
                dataset.attrs["dtype"] = dtype
        for name, column in index.items():
            file.create_dataset(name, data=column)
        file.flush()


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise KeyError(f"{name} is not a dataset")
    return dataset


def _layout(file: h5py.File, hooks: Collection[str]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Shape and chunk of every dataset of a shard."""
    datasets = {hook: _dataset(file, f"activations/{hook}") for hook in hooks}
    datasets |= {name: _dataset(file, name) for name in _INDEX}
    return {name: (dataset.shape, dataset.chunks) for name, dataset in datasets.items()}


def _read_rows(dataset: h5py.Dataset, start: int) -> Float[Tensor, "rows d_model"]:
    """The chunk that begins at row `start`, as float32.

    It is copied straight from the file, three times faster than through HDF5's own selection.
    """
    rows = np.empty(dataset.chunks or (), dtype=dataset.dtype)
    dataset.id.read_direct_chunk((start, 0), out=rows.reshape(-1).view(np.uint8))
    # The last chunk of a shard is padded in the file.
    tensor = torch.from_numpy(rows[: len(dataset) - start])
    return (tensor.view(torch.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else tensor).float()


def _read_index(file: h5py.File, rows: slice) -> Index:
    return {name: np.asarray(_dataset(file, name)[rows]) for name in _INDEX}


def _chosen(role: np.ndarray, roles: Collection[Role] | None) -> Tensor | slice:
    return slice(None) if roles is None else torch.from_numpy(np.isin(role, list(roles)))
