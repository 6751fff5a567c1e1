"""The files of a checkpoint: whether its folders are whole, before anything is loaded and without torch."""

import json
import re
from pathlib import Path

from activations.artefact import read_json
from activations.config import CheckpointConfig
from activations.errors import UserError

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_checkpoint(config: CheckpointConfig, role: str = "model") -> None:
    """Checks all of a checkpoint that needs neither network nor loading: folders, files, and the adapter's base.

    Raises:
        UserError: naming the folder, what is wrong with it, and the remedy.
    """
    folder = _local(config.model, f"{role} model")
    if folder is not None:
        if config.revision is not None:
            raise UserError(
                f"The {role} model {folder} is a folder, so it has no revision {config.revision}; leave it out."
            )
        _check_model_folder(folder, role)
    if config.adapter is not None:
        adapter = _local(config.adapter, f"{role} adapter")
        if adapter is not None:
            _check_adapter_folder(adapter, config.model, role)


def _local(source: str, what: str) -> Path | None:
    """The folder that `source` names; None if it is a hub name."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(source):
        raise UserError(f"The {what} {source} is not a folder; give a Hugging Face folder or a name on the hub.")
    return None


def _check_model_folder(folder: Path, role: str) -> None:
    where = f"The {role} model {folder}"
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} has no config.json; give a folder that save_pretrained wrote.")
    read_json(folder / "config.json")
    for weights in _weight_files(folder, where):
        _check_safetensors(weights, where)
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{where} has no {TOKENIZER}; save its fast tokenizer there with save_pretrained.")


def _weight_files(folder: Path, where: str) -> list[Path]:
    if (folder / _WEIGHTS_INDEX).is_file():
        index = read_json(folder / _WEIGHTS_INDEX)
        files = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
        if not files:
            raise UserError(f"{where} has a damaged {_WEIGHTS_INDEX}; copy or save the folder again.")
        return files
    if not (folder / _WEIGHTS).is_file():
        raise UserError(f"{where} has no {_WEIGHTS}: it was not written to its end; copy or save the folder again.")
    return [folder / _WEIGHTS]


def _check_safetensors(path: Path, where: str) -> None:
    """Compares a file's size with what its header promises, without reading the tensors."""
    half = f"{where} is half-written: {path.name} "
    if not path.is_file():
        raise UserError(f"{half}is missing; copy or save the folder again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A size check first: a broken length must not make us read gigabytes.
        header = file.read(length) if 8 + length <= size else b""
    try:
        tensors = json.loads(header)
        end = max(entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{half}has no whole header; copy or save the folder again.") from None
    if size != 8 + length + end:
        raise UserError(f"{half}has {size} bytes instead of {8 + length + end}; copy or save the folder again.")


def _check_adapter_folder(folder: Path, model: str, role: str) -> None:
    where = f"The {role} adapter {folder}"
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{where} has no {ADAPTER_CONFIG}; give a folder that peft's save_pretrained wrote.")
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{where} has no {_ADAPTER_WEIGHTS}; copy or save the adapter again.")
    _check_safetensors(folder / _ADAPTER_WEIGHTS, where)
    check_base(where, read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"), model)


def check_base(where: str, base: str | None, model: str) -> None:
    # A folder may have been moved since, and forks keep the name: only the last part has to agree.
    if base and Path(base).name != Path(model).name and Path(base).resolve() != Path(model).resolve():
        raise UserError(f"{where} was made for {base}, not for {model}; load it with the model that it was made for.")
