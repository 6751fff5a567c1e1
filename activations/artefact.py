"""Artefacts: folders that hold what a stage made, the config that made it, and where it came from.

`config.json` is written last, so a folder without it is unfinished and never taken for a whole one. `provenance.json`
records the code's commit, package versions, the time, and the content hashes of the artefacts it was made from.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from activations.errors import UserError

CONFIG = "config.json"
PROVENANCE = "provenance.json"
MANIFEST = "manifest.json"

_PACKAGES = (
    "torch",
    "transformers",
    "transformer-lens",
    "sae-lens",
    "peft",
    "safetensors",
    "tokenizers",
    "h5py",
    "numpy",
)
_BLOCK = 1 << 24


def write_json(path: Path, obj: Any) -> None:
    """Writes JSON so that at any moment the file holds either its old or its whole new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(obj, file, indent=1, ensure_ascii=False)
        file.write("\n")
    publish(temporary, path)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); make it again.") from None


def publish(temporary: Path, path: Path) -> None:
    """Gives a written file its final name, durably: its bytes reach the disk before its name does."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """xxh3_128 of a file's bytes, as hex."""
    digest = xxhash.xxh3_128()
    _feed(digest, path)
    return digest.hexdigest()


def content_hash(folder: Path) -> str:
    """xxh3_128 over relative names and bytes of a folder's files.

    Left out are `provenance.json`, which holds the time, and hidden files (locks, unfinished writes): two artefacts
    made from the same things have the same hash. Where there is a manifest, it has checksums of files that may be
    terabytes: it stands for them.
    """
    listed = (folder / MANIFEST).exists()
    found = (folder / CONFIG, folder / MANIFEST) if listed else folder.rglob("*")
    names = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    digest = xxhash.xxh3_128()
    for name in sorted(names):
        if name == PROVENANCE or any(part.startswith(".") for part in name.split("/")):
            continue
        # Lengths keep "ab" + "c" apart from "a" + "bc".
        digest.update(f"{len(name.encode())}:{name}:{names[name].stat().st_size}:".encode())
        _feed(digest, names[name])
    return digest.hexdigest()


def finish_artefact(folder: Path, config: Mapping[str, Any], parents: Mapping[str, Path] | None = None) -> None:
    """Declares an artefact whole: writes `provenance.json`, then `config.json`.

    Args:
        folder: Folder that already holds the artefact's tensors or tables.
        config: What made the artefact; must have the key "kind".
        parents: The artefacts that this one was made from, by the name that they have in its provenance.
    """
    if "kind" not in config:
        raise ValueError(f"Expected config with the key 'kind', got the keys {sorted(config)}.")
    folder.mkdir(parents=True, exist_ok=True)
    provenance = {
        "commit": code_commit(),
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parents": {name: content_hash(Path(parent)) for name, parent in (parents or {}).items()},
    }
    write_json(folder / PROVENANCE, provenance)
    write_json(folder / CONFIG, dict(config))


def open_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder, or declare a finished artefact in it unfinished while it is replaced.

    Raises:
        UserError: if it is a file, or holds a finished artefact and `overwrite` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; choose another place.")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    if config.exists() and not overwrite:
        raise UserError(f"{folder} holds a finished artefact; choose another folder or --overwrite.")
    config.unlink(missing_ok=True)


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """Reads the config of a finished artefact.

    Raises:
        UserError: if the folder is missing, unfinished, or holds an artefact of another kind.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected the folder of a finished {kind}.")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}: it was not finished; run it again.")
    config = read_json(folder / CONFIG)
    found = config.get("kind") if isinstance(config, dict) else None
    if found != kind:
        raise UserError(
            f"{folder} holds {f'a {found}' if found else 'something else'}; expected the folder of a {kind}."
        )
    return config


@functools.cache
def code_commit() -> str:
    """The git commit of this code, with "-dirty" after it where files differ from it; "unknown" outside a checkout."""
    # A virtual environment may lie inside some other repository; its commit would say nothing about this code.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _feed(digest: xxhash.xxh3_128, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
