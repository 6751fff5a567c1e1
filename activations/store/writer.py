"""Writing a store, alone or as one of several processes that own disjoint shards of it.

A shard is written under a hidden temporary name, synced, renamed, and then listed in the writer's own manifest, which
is itself replaced in one step: a kill at any moment loses at most the shard being written. Which rows a shard holds
depends on the prompts alone, so whoever resumes, with however many processes, ends with the same bytes.
"""

import fcntl
import os
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from activations.artefact import CONFIG, MANIFEST, finish_artefact, publish, write_json
from activations.config import StoreDtype
from activations.errors import UserError
from activations.prompts import Role
from activations.source import Index
from activations.store.layout import INDEX, KIND, Manifest, Shard, part_manifests, read_manifest, to_disk, write_shard
from activations.tokens import add_hashes

_LOCK = ".lock"


class StoreWriter:
    """Writes shards of a store; goes on where earlier writers of the same store were stopped.

    Use it as a context manager: leaving it without `close` keeps what was written so far and frees the folder.
    """

    def __init__(
        self,
        folder: Path,
        hooks: Mapping[str, int],
        dtype: StoreDtype,
        config: Mapping[str, Any],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Opens a folder for writing.

        Args:
            folder: New or empty folder, or one that writers with the same arguments left unfinished.
            hooks: d_model of each hook.
            dtype: Number format on disk.
            config: JSON-able description of what is written. "model", the display name of the checkpoint, may differ
                between the writer that began and the one that resumes.
            rank: Number of this process among those that write the store.
            ranks: How many write it; they share the folder.

        Raises:
            UserError: if the folder holds something else, is finished, or another process is writing to it.
        """
        self.folder = folder
        self._rank, self._ranks = rank, ranks
        self._path = folder / f"{Path(MANIFEST).stem}.{rank}-of-{ranks}.json"
        self._own = Manifest(hooks=dict(hooks), dtype=dtype, config=dict(config))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._locks = _lock(folder, rank, ranks)
        except OSError as error:
            raise UserError(f"{folder} cannot be written to ({_reason(error)}); choose another folder.") from error
        try:
            self._resume()
        except BaseException:
            self.release()
            raise

    def holds(self, number: int, tokens_hash: str) -> bool:
        """Whether a shard is safely on disk, whoever wrote it.

        Raises:
            UserError: if it is, with other tokens.
        """
        shard = self._finished.get(number)
        if shard is not None and shard.tokens_hash != tokens_hash:
            raise UserError(f"{self.folder} holds activations of other tokens; choose another folder or --overwrite.")
        return shard is not None

    def write(
        self,
        number: int,
        activations: Mapping[str, Shaped[Tensor, "rows d_model"]],
        index: Mapping[str, np.ndarray],
        prompts: Mapping[int, str],
        tokens_hash: str,
    ) -> None:
        """Writes one shard, durably.

        Args:
            number: Its place in the order of rows, counted from 0.
            activations: For each hook of the store, rows of its width.
            index: Token id, number of the prompt, position in it and `Role` of each row, by the names of `INDEX`.
            prompts: Id of each prompt in the shard, by its number.
            tokens_hash: Hash of these prompts.
        """
        columns: Index = {name: np.ascontiguousarray(index[name], dtype=dtype) for name, dtype in INDEX.items()}
        rows = len(columns["token"])
        for hook, d_model in self._own.hooks.items():
            if activations[hook].shape != (rows, d_model):
                shape = tuple(activations[hook].shape)
                raise ValueError(f"Expected activations of {hook} with shape {(rows, d_model)}, got {shape}.")
        stored = {hook: to_disk(activations[hook], self._own.dtype) for hook in self._own.hooks}
        path = self.folder / f"shard-{number:05d}.h5"
        temporary = self.folder / f".{path.name}.{self._rank}.tmp"
        try:
            checksum = write_shard(temporary, stored, columns, prompts, self._own.dtype)
            shard = Shard(
                number=number,
                file=path.name,
                rows=rows,
                bytes=temporary.stat().st_size,
                checksum=checksum,
                roles=tuple(np.bincount(columns["role"], minlength=len(Role)).tolist()),
                tokens_hash=tokens_hash,
            )
            publish(temporary, path)
            self._list(shard)
        except (OSError, RuntimeError) as error:  # the latter: HDF5 cannot close what it could not write
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise UserError(
                f"{path} cannot be written ({_reason(error)}); make room and run again, finished shards stay."
            ) from error

    def close(self, total: int, tokens_hash: str) -> bool:
        """Says that this writer's share is done, and declares the store whole if all shares are.

        Args:
            total: Shards of the whole store.
            tokens_hash: Hash of the prompts of the whole store.

        Returns:
            Whether the store is whole.

        Raises:
            UserError: if other writers of the folder have read other prompts.
        """
        self._own = self._own.model_copy(update={"total": total, "tokens_hash": tokens_hash})
        with _exclusive(self.folder / f"{_LOCK}.finish"):
            # Another rank may just have seen that all is there.
            if not (self.folder / CONFIG).exists() and not self._publish_if_complete():
                return False
            # Those of killed ranks too, whose shards others have written since.
            for path in (*part_manifests(self.folder), *self.folder.glob(".shard-*.tmp")):
                path.unlink(missing_ok=True)
        for lock in self.folder.glob(f"{_LOCK}*"):
            lock.unlink(missing_ok=True)
        self.release()
        return True

    def release(self) -> None:
        """Frees the folder for other writers."""
        while self._locks:
            os.close(self._locks.pop())

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _resume(self) -> None:
        """Takes over what earlier writers of the same store have finished."""
        if (self.folder / CONFIG).exists():
            raise UserError(f"{self.folder} holds a finished artefact; choose another folder or --overwrite.")
        if not _written(self.folder):
            foreign = sorted(path.name for path in self.folder.iterdir() if not _ours(path))
            if foreign:
                raise UserError(
                    f"{self.folder} is in use: it holds {foreign[0]}; choose another folder or --overwrite."
                )
        joined = _joined(self.folder, self._own)
        self._finished = {shard.number: shard for shard in joined.shards}
        if self._path.exists():
            self._own = read_manifest(self._path)
        else:
            write_json(self._path, self._own.model_dump())

    def _publish_if_complete(self) -> bool:
        write_json(self._path, self._own.model_dump())
        joined = _joined(self.folder, self._own)
        if not joined.consistent:
            raise UserError(f"{self.folder} holds activations of other prompts as well; start in a new folder.")
        if joined.complete:
            publish_store(self.folder, joined)
        return joined.complete

    def _list(self, shard: Shard) -> None:
        self._own = self._own.model_copy(update={"shards": (shard,)}).joined(self._own)
        write_json(self._path, self._own.model_dump())
        self._finished[shard.number] = shard


def publish_store(folder: Path, manifest: Manifest) -> None:
    """Declares a folder a whole store of these shards."""
    write_json(folder / MANIFEST, manifest.model_dump())
    described = {
        "kind": KIND,
        "version": manifest.version,
        "hooks": manifest.hooks,
        "dtype": manifest.dtype,
        "rows": sum(shard.rows for shard in manifest.shards),
        "tokens_hash": add_hashes(shard.tokens_hash for shard in manifest.shards),
    }
    finish_artefact(folder, {**described, **manifest.config})


def _joined(folder: Path, wanted: Manifest) -> Manifest:
    """Shards of all writers of a folder.

    Raises:
        UserError: if one of them wrote other activations.
    """
    joined = wanted
    for path in _written(folder):
        part = read_manifest(path)
        if not part.same_activations(wanted):
            raise UserError(f"{folder} holds other activations; choose another folder or --overwrite.")
        joined = part.joined(joined)
    return joined


def _written(folder: Path) -> list[Path]:
    """Manifests of an unfinished folder: its writers' own, and the whole store's if only the config is missing."""
    return [*part_manifests(folder), *folder.glob(MANIFEST)]


def _lock(folder: Path, rank: int, ranks: int) -> list[int]:
    """Locks that the system frees when the process ends, however it ends: a single writer's, or one rank's."""
    names = [(_LOCK, fcntl.LOCK_EX)] if ranks == 1 else [(_LOCK, fcntl.LOCK_SH), (f"{_LOCK}.{rank}", fcntl.LOCK_EX)]
    held: list[int] = []
    for name, kind in names:
        held.append(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            fcntl.flock(held[-1], kind | fcntl.LOCK_NB)
        except BlockingIOError:
            for descriptor in held:
                os.close(descriptor)
            raise UserError(f"Another process is writing to {folder}; wait for it or choose another folder.") from None
    return held


@contextmanager
def _exclusive(path: Path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The system's words for what went wrong: HDF5's own fill a page, and its last error may not be its first."""
    number = getattr(error, "errno", None) or getattr(error.__context__, "errno", None)
    return os.strerror(number) if number else str(error)


def _ours(path: Path) -> bool:
    """Whether a file may lie in a folder whose writer was killed before its first manifest."""
    return path.name.startswith((_LOCK, f".{Path(MANIFEST).stem}"))
