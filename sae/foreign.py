"""SAE folders that other libraries wrote, opened as sae-lens SAEs: EleutherAI's sparsify and dictionary_learning.

What a stored SAE computes is taken from the source of eai-sparsify 1.3.3 and dictionary-learning 0.1.0. sae-lens's own
converters do not serve: the one for sparsify transposes a decoder that already lies as it should, and subtracts `b_dec`
from the input only if the decoder was not normalised; the one for dictionary_learning reads no local folder.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activations.artefact import read_json
from activations.errors import UserError

if TYPE_CHECKING:
    from sae_lens import SAE

_SAE_LENS_WEIGHTS = "sae_weights.safetensors"
_SPARSIFY_CONFIG, _SPARSIFY_WEIGHTS = "cfg.json", "sae.safetensors"
_DICTIONARY_CONFIG, _DICTIONARY_WEIGHTS = "config.json", "ae.pt"

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_NAMED_ALIKE = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
# K again, the Matryoshka groups, and the threshold of a TopK, which encodes by K: nothing that encoding needs.
_UNUSED = {"k", "group_sizes", "threshold"}


@dataclass(frozen=True)
class _Layout:
    """How a class of another library keeps its SAE.

    Attributes:
        architecture: sae-lens's name of the architecture that encodes alike.
        names: what sae-lens calls each stored tensor.
        centred: whether `b_dec` is subtracted from the input.
        unit_decoder: whether the library, on loading, moves the norms of decoder rows into the latents.
        l0: entry of the configuration with the number of active latents that the training aimed at.
    """

    architecture: str
    names: Mapping[str, str]
    centred: bool = True
    unit_decoder: bool = False
    l0: str | None = None


_SPARSIFY = _Layout(
    "topk", {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}, l0="k"
)
_GATED = {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
# A trained BatchTopK does not look at the batch: it is a JumpReLU whose latents share a threshold.
_DICTIONARY_CLASSES = {
    "AutoEncoder": _Layout("standard", _LINEAR | {"bias": "b_dec"}, unit_decoder=True),
    "AutoEncoderNew": _Layout("standard", _LINEAR | {"decoder.bias": "b_dec"}, centred=False),
    "GatedAutoEncoder": _Layout("gated", {"encoder.weight": "W_enc", "decoder.weight": "W_dec"} | _GATED),
    "JumpReluAutoEncoder": _Layout("jumprelu", _NAMED_ALIKE, centred=False, l0="target_l0"),
    "AutoEncoderTopK": _Layout("topk", _LINEAR | {"b_dec": "b_dec"}, l0="k"),
    "BatchTopKSAE": _Layout("jumprelu", _LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, l0="k"),
    "MatryoshkaBatchTopKSAE": _Layout("jumprelu", _NAMED_ALIKE, l0="k"),
}


@dataclass(frozen=True)
class _Stored:
    """What a folder holds.

    Attributes:
        path: file of the tensors.
        tensors: as they lie in it.
        layout: what they are.
        d_model: width of the activations.
        latents: number of latents.
        l0: active latents that the training aimed at; K of a TopK.
        hook: hook point of the activations, None where the files leave a doubt.
        model: name of the model, if the files tell it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    layout: _Layout
    d_model: int
    latents: int
    l0: int | float | None
    hook: str | None
    model: str | None


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds the weights of another library, and none of sae-lens's."""
    if (folder / _SAE_LENS_WEIGHTS).is_file():
        return False
    return any((folder / name).is_file() for name in (_SPARSIFY_WEIGHTS, _DICTIONARY_WEIGHTS))


def load_foreign(folder: Path, device: str, dtype: str) -> "SAE":
    """Loads an SAE of another library; it computes what the library's own loader makes of the folder.

    Its `cfg.metadata` has `hook_name` (where the files leave no doubt), `model_name` and `l0` (the number of active
    latents that the training aimed at), each None where unknown.

    Args:
        folder: `cfg.json` and `sae.safetensors` of sparsify, or `config.json` and `ae.pt` of dictionary_learning.
        device: where to put it.
        dtype: number format of its weights, as torch names it.

    Raises:
        UserError: if a file is missing or damaged, if they contradict each other, or if no SAE of sae-lens computes
            the same.
    """
    from sae_lens import SAE

    stored = _read_sparsify(folder) if (folder / _SPARSIFY_WEIGHTS).is_file() else _read_dictionary(folder)
    found = _sae_lens_config(stored), _sae_lens_weights(stored)
    # Norms move in float32; in the weights' final format they would be rounded twice.
    sae = SAE.load_from_disk(
        folder, converter=lambda path, device, cfg_overrides: found, fold_W_dec_norm=stored.layout.unit_decoder
    )
    return sae.to(device=device, dtype=getattr(torch, dtype))


def _sae_lens_config(stored: _Stored) -> dict[str, Any]:
    from sae_lens import __version__

    known = {"hook_name": stored.hook, "model_name": stored.model, "l0": stored.l0}
    config = {
        "architecture": stored.layout.architecture,
        "d_in": stored.d_model,
        "d_sae": stored.latents,
        "apply_b_dec_to_input": stored.layout.centred,
        # sae-lens takes a configuration without a version for one of before 6.0, and drops `l0`.
        "metadata": {"sae_lens_version": __version__, **known},
    }
    return config | ({"k": stored.l0} if stored.layout.architecture == "topk" else {})


def _sae_lens_weights(stored: _Stored) -> dict[str, Tensor]:
    """The tensors under sae-lens's names and in its shapes."""
    _require_names(stored)
    sizes = {
        "W_enc": (stored.d_model, stored.latents),
        "W_dec": (stored.latents, stored.d_model),
        "b_dec": (stored.d_model,),
    }
    weights = {}
    for theirs, ours in stored.layout.names.items():
        size, tensor = sizes.get(ours, (stored.latents,)), stored.tensors[theirs]
        if ours == "threshold" and tensor.ndim == 0:
            tensor = tensor.expand(stored.latents)
        # torch.nn.Linear keeps one row an output.
        transposed = theirs.endswith(".weight")
        _require_shape(stored.path, theirs, tensor, size[::-1] if transposed else size)
        weights[ours] = (tensor.T if transposed else tensor).contiguous()
    return weights


def _require_names(stored: _Stored) -> None:
    expected = stored.layout.names.keys()
    missing, unknown = expected - stored.tensors.keys(), stored.tensors.keys() - expected - _UNUSED
    if missing or unknown:
        problem = f"lacks {_listed(missing)}" if missing else f"holds {_listed(unknown)} besides"
        raise UserError(
            f"{stored.path} is not what its configuration says: an SAE of that class has the tensors "
            f"{_listed(expected)}, and the file {problem}; copy both files again, or choose another SAE."
        )


def _require_shape(path: Path, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise UserError(
            f"{path} has {name} of shape {tuple(tensor.shape)}, but by its configuration it is {expected}; "
            "copy both files again from one SAE."
        )


def _read_sparsify(folder: Path) -> _Stored:
    config_path, path = folder / _SPARSIFY_CONFIG, folder / _SPARSIFY_WEIGHTS
    config = _read_config(config_path)
    for entry, plain in {"transcode": False, "skip_connection": False, "signed": False, "activation": "topk"}.items():
        value = config.get(entry, plain)
        if value != plain:
            raise UserError(
                f"{config_path} has {entry}={value}, but only plain TopK SAEs of sparsify can be opened; "
                f"choose one with {entry}={plain}."
            )
    d_model = _whole_number(config, "d_in", config_path)
    # Zero stands for "by the expansion factor".
    if config.get("num_latents"):
        latents = _whole_number(config, "num_latents", config_path)
    else:
        latents = d_model * _whole_number(config, "expansion_factor", config_path)
    k = _active_latents(config, latents, config_path)
    hook, model = _sparsify_origin(folder.resolve())
    return _Stored(path, _read_safetensors(path), _SPARSIFY, d_model, latents, k, hook, model)


def _sparsify_origin(folder: Path) -> tuple[str | None, str | None]:
    """Hook point and model: sparsify names a folder after the module, and keeps the run's configuration above it."""
    module = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    path = module.parent / "config.json"
    run = read_json(path) if path.is_file() else None
    # Above a folder that was moved may lie the config.json of something else.
    model = run.get("model") if isinstance(run, dict) and isinstance(run.get("sae"), dict) else None
    return _output_of_block(module.name), _text(model)


def _read_dictionary(folder: Path) -> _Stored:
    config_path, path = folder / _DICTIONARY_CONFIG, folder / _DICTIONARY_WEIGHTS
    config = _read_config(config_path)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise UserError(f"{config_path} has no entry trainer with the SAE's class and sizes; copy it again.")
    layout = _DICTIONARY_CLASSES.get(str(trainer.get("dict_class")))
    if layout is None:
        raise UserError(
            f"{config_path} has trainer.dict_class={trainer.get('dict_class')}, which cannot be opened; "
            f"choose an SAE of {', '.join(_DICTIONARY_CLASSES)}."
        )
    d_model, latents = (_whole_number(trainer, entry, config_path) for entry in ("activation_dim", "dict_size"))
    tensors = _read_torch(path)
    l0 = _active_latents(trainer, latents, config_path) if layout.l0 == "k" else trainer.get(layout.l0)
    if "k" in tensors and tensors["k"].tolist() != l0:
        raise UserError(f"{path} has k={tensors['k'].tolist()}, {config_path} has {l0}; copy both from one SAE.")
    hook = _dictionary_hook(trainer, config.get("buffer"))
    return _Stored(path, tensors, layout, d_model, latents, l0, hook, _text(trainer.get("lm_name")))


def _dictionary_hook(trainer: Mapping[str, Any], buffer: Any) -> str | None:
    """The hook, where a whole block's output was read: `layer` alone names no module, and a buffer may read inputs."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name"))
    reads_input = isinstance(buffer, dict) and buffer.get("io", "out") != "out"
    hook = _output_of_block(name.replace("resid_post_layer_", "layers."))
    return hook if hook == f"blocks.{layer}.hook_resid_post" and not reads_input else None


def _output_of_block(module: str) -> str | None:
    """Hook point of a module's output, if the module is a whole block of a decoder."""
    block = re.fullmatch(r"((model|transformer|gpt_neox)\.)?(layers|h)\.(\d+)", module)
    return f"blocks.{block[4]}.hook_resid_post" if block else None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} has an SAE's weights but no {path.name}; copy that file too.")
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no JSON object and so describes no SAE; copy it again.")
    return config


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); copy it again.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of torch.save. Nothing but tensors is opened: any other pickle could run code."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle can raise anything.
        raise UserError(
            f"{path} cannot be read as tensors alone ({_reason(error)}); copy it again, or save the SAE's "
            "state_dict() with torch.save."
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} is not the state_dict of an SAE; save its state_dict() with torch.save.")
    return tensors


def _whole_number(config: Mapping[str, Any], entry: str, path: Path) -> int:
    value = config.get(entry)
    if type(value) is not int or value < 1:
        raise UserError(f"{path} has {entry}={value}, expected a whole number above zero; copy it again.")
    return value


def _active_latents(config: Mapping[str, Any], latents: int, path: Path) -> int:
    k = _whole_number(config, "k", path)
    if k > latents:
        raise UserError(f"{path} has k={k} active of only {latents} latents; copy it again.")
    return k


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
