"""Joining stores without copying a byte of activations: only a manifest is written, which lists the shards of all."""

import os
from collections.abc import Sequence
from pathlib import Path

from activations.artefact import CONFIG, MANIFEST, open_folder
from activations.errors import UserError
from activations.store.layout import Manifest, part_manifests, read_manifest
from activations.store.reader import ActivationStore
from activations.store.writer import publish_store
from activations.tokens import add_hashes


def merge_stores(folders: Sequence[Path], out: Path, overwrite: bool = False) -> ActivationStore:
    """Makes one store of several, whose shards stay where they are (listed by relative paths).

    Either the folders hold shares of one harvest, written by several machines, which are put back into its order of
    rows; or finished stores of one model on different prompts, which are put one after another.

    Args:
        folders: What to join.
        out: New folder of the joined store.
        overwrite: Replace a finished store in `out`.

    Raises:
        UserError: if they hold activations of different models, hooks or number formats, if a share is missing, or if
            two stores hold prompts of the same id.
    """
    if not folders:
        raise UserError("There are no stores to merge; name at least one folder.")
    parts = [(folder, manifest) for folder in folders for manifest in _manifests(folder)]
    joined = _shares(parts, out) if any(not (f / CONFIG).exists() for f in folders) else _one_after_another(parts, out)
    open_folder(out, overwrite)
    publish_store(out, joined)
    return ActivationStore.load(out)


def _manifests(folder: Path) -> list[Manifest]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected the folder of a store.")
    paths = [folder / MANIFEST] if (folder / CONFIG).exists() else part_manifests(folder)
    if not paths:
        raise UserError(f"{folder} holds no activations; name the folder of a harvest.")
    return [read_manifest(path) for path in paths]


def _shares(parts: Sequence[tuple[Path, Manifest]], out: Path) -> Manifest:
    """Shares of one harvest."""
    first_folder, first = parts[0]
    joined = first.model_copy(update={"shards": ()})
    for folder, manifest in parts:
        if not manifest.same_activations(first):
            raise UserError(f"{folder} and {first_folder} are not shares of one harvest; merge finished stores.")
        joined = _listed_from(manifest, folder, out).joined(joined)
    if not joined.consistent:
        raise UserError(f"{first_folder} and the other folders hold different prompts; merge finished stores.")
    if not joined.complete:
        there, wanted = len(joined.shards), "an unknown number" if joined.total is None else joined.total
        raise UserError(f"Only {there} of {wanted} shards are there; let all ranks finish, then merge their folders.")
    return joined


def _one_after_another(parts: Sequence[tuple[Path, Manifest]], out: Path) -> Manifest:
    """Finished stores of one model on different prompts."""
    first_folder, first = parts[0]
    shards, ids = [], set()
    for folder, manifest in parts:
        if _model(manifest) != _model(first):
            raise UserError(f"{folder} holds activations of another model, hook or format than {first_folder}.")
        own = ActivationStore.load(folder).prompt_ids
        if again := ids.intersection(own):
            raise UserError(f"{folder} holds prompt '{min(again)}', which is in another store too; ids must differ.")
        shards += [
            shard.model_copy(update={"number": len(shards) + i, "first_prompt": shard.first_prompt + len(ids)})
            for i, shard in enumerate(_listed_from(manifest, folder, out).shards)
        ]
        ids.update(own)
    tokens_hash = add_hashes(shard.tokens_hash for shard in shards)
    return first.model_copy(update={"shards": tuple(shards), "total": len(shards), "tokens_hash": tokens_hash})


def _listed_from(manifest: Manifest, folder: Path, out: Path) -> Manifest:
    """The same manifest as seen from another folder."""
    moved = {shard: os.path.relpath((folder / shard.file).resolve(), out.resolve()) for shard in manifest.shards}
    return manifest.model_copy(
        update={"shards": tuple(shard.model_copy(update={"file": file}) for shard, file in moved.items())}
    )


def _model(manifest: Manifest) -> tuple[object, ...]:
    return (manifest.hooks, manifest.dtype, *(manifest.config.get(k) for k in ("checkpoint", "model_dtype")))
