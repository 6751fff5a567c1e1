"""SAE folders: sae-lens's `cfg.json` and `sae_weights.safetensors`; beside them our `config.json` and provenance."""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from activations.artefact import finish_artefact, read_json
from activations.errors import UserError
from sae.foreign import is_foreign, load_foreign

if TYPE_CHECKING:
    from sae_lens import SAE

KIND = "sae"
SAEDtype = Literal["float32", "bfloat16", "float16"]

_CFG = "cfg.json"
_WEIGHTS = "sae_weights.safetensors"


def save_sae(
    sae: "SAE",
    folder: Path,
    hook: str,
    model_name: str,
    training: Mapping[str, Any],
    parents: Mapping[str, Path] | None = None,
) -> Path:
    """Saves an SAE in sae-lens's format; the folder appears in one step, whole.

    Args:
        sae: any sae-lens SAE; the hook and the model are noted in its metadata.
        folder: new or empty folder.
        hook: hook point whose activations it explains.
        model_name: model whose activations it was trained on.
        training: JSON-able description of the training, kept in `config.json`.
        parents: artefacts it was made from, for the provenance.

    Returns:
        The folder.

    Raises:
        UserError: if the folder is in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use; choose another folder or --overwrite.")
    sae.cfg.metadata.hook_name = hook
    sae.cfg.metadata.model_name = model_name
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        sae.save_model(temporary)
        config = {"kind": KIND, "hook": hook, "model": model_name, "d_model": sae.cfg.d_in, "latents": sae.cfg.d_sae}
        finish_artefact(temporary, {**config, "training": dict(training)}, parents)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load_sae(source: str | Path, device: str = "cpu", dtype: SAEDtype = "float32") -> "SAE":
    """Loads an SAE, ready for inference.

    Args:
        source: a local folder in the format of sae-lens (written by us or not), sparsify or dictionary_learning, or
            "release:sae_id" of sae-lens's registry, which is downloaded unless it is in the Hugging Face cache.
        device: where to put it.
        dtype: number format of its weights.

    Raises:
        UserError: if there is no such folder or release, or the files are incomplete, damaged or of an unknown kind.
    """
    release, colon, sae_id = str(source).partition(":")
    if Path(source).exists():
        sae = _load_folder(Path(source), device, dtype)
    elif colon and release and sae_id:
        sae = _load_release(release, sae_id, device, dtype)
    else:
        raise UserError(f"{source} does not exist; expected an SAE folder in sae-lens's format or release:sae_id.")
    return sae.eval().requires_grad_(False)


def own_hook(sae: "SAE", source: str | Path) -> str:
    """The hook point that an SAE says it was trained on.

    Raises:
        UserError: if it does not say; `source` is what the message calls it.
    """
    if sae.cfg.metadata.hook_name is None:
        raise UserError(f"SAE {source} does not say which hook it was trained on; give --hook.")
    return sae.cfg.metadata.hook_name


def require_fit(sae: "SAE", hook: str, d_model: int, model_name: str | None = None) -> None:
    """Checks that an SAE belongs to activations, as far as it says where it comes from.

    Args:
        sae: the SAE.
        hook: hook point of the activations.
        d_model: their width.
        model_name: model that they should be explained for (the base, also for a fine-tune's activations); compared
            by its last path component, without regard to case. None leaves the model unchecked.

    Raises:
        UserError: if width, hook or model differ.
    """
    known = sae.cfg.metadata
    if sae.cfg.d_in != d_model:
        raise UserError(
            f"SAE expects d_model={sae.cfg.d_in}, activations have {d_model} ({hook} of {model_name or 'the model'}); "
            f"pick the SAE of that model or harvest {known.hook_name or 'the hook'} of "
            f"{known.model_name or 'the model it was trained on'}."
        )
    if known.hook_name is not None and _same_point(known.hook_name) != _same_point(hook):
        raise UserError(
            f"SAE was trained on {known.hook_name}, activations are of {hook}; "
            f"harvest {known.hook_name} or pick an SAE of {hook}."
        )
    if model_name and known.model_name and _last_part(known.model_name) != _last_part(model_name):
        raise UserError(
            f"SAE was trained on the model {known.model_name}, activations are of {model_name}; "
            "pick the SAE of that model."
        )


def _load_folder(folder: Path, device: str, dtype: SAEDtype) -> "SAE":
    known = next((one for one in FORMATS.values() if one.matches(folder)), None)
    if known is None:
        *names, last = (f"{name} ({one.files})" for name, one in FORMATS.items())
        raise UserError(
            f"{folder} holds no SAE in the format of {', '.join(names)} or {last}; name another, or copy it again."
        )
    return known.load(folder, device, dtype)


def _load_sae_lens(folder: Path, device: str, dtype: SAEDtype) -> "SAE":
    from sae_lens import SAE

    for name in (_CFG, _WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}: it is no SAE in the format of sae-lens, sparsify (sae.safetensors) or "
                "dictionary_learning (ae.pt), or was not finished."
            )
    read_json(folder / _CFG)
    try:
        return SAE.load_from_disk(folder, device=device, dtype=dtype)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} does not load as a sae-lens SAE ({type(error).__name__}: {reason}); copy or train it again."
        ) from error


@dataclass(frozen=True)
class Format:
    """A kind of dictionary on disk.

    Attributes:
        files: What its folders hold.
        matches: Whether a folder is of this kind; the first that matches loads it.
        load: Makes a sae-lens SAE of (folder, device, dtype).
    """

    files: str
    matches: "Callable[[Path], bool]"
    load: "Callable[[Path, str, SAEDtype], SAE]"


# Every kind of dictionary that `load_sae` opens; another one is one more entry.
FORMATS: dict[str, Format] = {
    "sae-lens": Format(
        f"{_CFG} and {_WEIGHTS}",
        lambda folder: not is_foreign(folder) and any((folder / name).is_file() for name in (_CFG, _WEIGHTS)),
        _load_sae_lens,
    ),
    "sparsify": Format("cfg.json and sae.safetensors", is_foreign, load_foreign),
    "dictionary_learning": Format("ae.pt and config.json", is_foreign, load_foreign),
}


def _load_release(release: str, sae_id: str, device: str, dtype: SAEDtype) -> "SAE":
    from sae_lens import SAE

    try:
        return SAE.from_pretrained(release, sae_id, device=device, dtype=dtype)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"SAE {release}:{sae_id} cannot be had ({reason}); check the name in sae-lens's registry and the "
            "network, or give a local folder."
        ) from error


def _same_point(hook: str) -> str:
    """The residual stream before block L+1 is the one after block L."""
    before = re.fullmatch(r"blocks\.([1-9]\d*)\.hook_resid_pre", hook)
    return f"blocks.{int(before[1]) - 1}.hook_resid_post" if before else hook


def _last_part(model_name: str) -> str:
    return model_name.rstrip("/").rsplit("/", 1)[-1].lower()
