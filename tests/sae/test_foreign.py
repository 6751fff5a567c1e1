"""Folders in the formats of sparsify and dictionary_learning, against those libraries' formulas in dense float64."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from activations.errors import UserError
from sae.storage import load_sae, save_sae

D_MODEL, LATENTS, K = 6, 20, 3

State = Mapping[str, Tensor]
Computes = Callable[[State, Tensor], tuple[Tensor, Tensor]]


def top(x: Tensor, k: int) -> Tensor:
    """The k largest entries of every row, zero elsewhere."""
    return torch.where(x >= x.sort(dim=1, descending=True).values[:, k - 1 : k], x, 0)


def sparsify_topk(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    f = top(((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu(), K)
    return f, f @ s["W_dec"] + s["b_dec"]


def autoencoder(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Loading gives every decoder column norm 1; what that takes from the decoder, the latents get."""
    norms = s["decoder.weight"].norm(dim=0)
    f = norms * ((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return f, (f / norms) @ s["decoder.weight"].T + s["bias"]


def autoencoder_new(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    f = (x @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return f, f @ s["decoder.weight"].T + s["decoder.bias"]


def gated(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    seen = (x - s["decoder_bias"]) @ s["encoder.weight"].T
    open_gates = seen + s["gate_bias"] > 0
    f = torch.where(open_gates, (s["r_mag"].exp() * seen + s["mag_bias"]).relu(), 0)
    return f, f @ s["decoder.weight"].T + s["decoder_bias"]


def jumprelu(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    before = x @ s["W_enc"] + s["b_enc"]
    f = torch.where(before > s["threshold"], before, 0).relu()
    return f, f @ s["W_dec"] + s["b_dec"]


def topk(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    f = top(((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu(), K)
    return f, f @ s["decoder.weight"].T + s["b_dec"]


def batch_topk(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    before = (x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]
    f = torch.where(before > s["threshold"], before, 0)
    return f, f @ s["decoder.weight"].T + s["b_dec"]


def matryoshka(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    before = (x - s["b_dec"]) @ s["W_enc"] + s["b_enc"]
    f = torch.where(before > s["threshold"], before, 0)
    return f, f @ s["W_dec"] + s["b_dec"]


def random_state(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of these names, with "." for "__"; none of them is negligible."""
    generator = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): torch.randn(size, generator=generator) for name, size in sizes.items()}


def linear(latents: int, **more: tuple[int, ...]) -> dict[str, Tensor]:
    encoder = {"encoder__weight": (latents, D_MODEL), "encoder__bias": (latents,)}
    return random_state(**encoder, decoder__weight=(D_MODEL, latents), **more)


def plain(latents: int, **more: tuple[int, ...]) -> dict[str, Tensor]:
    encoder = {"W_enc": (D_MODEL, latents), "b_enc": (latents,)}
    return random_state(**encoder, W_dec=(latents, D_MODEL), b_dec=(D_MODEL,), **more)


def dictionary_state(name: str, latents: int = LATENTS) -> dict[str, Tensor]:
    k, threshold = {"k": torch.tensor(K, dtype=torch.int)}, {"threshold": torch.tensor(0.7)}
    match name:
        case "AutoEncoder":
            return linear(latents, bias=(D_MODEL,))
        case "AutoEncoderNew":
            return linear(latents, decoder__bias=(D_MODEL,))
        case "GatedAutoEncoder":
            gates = dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (latents,))
            state = linear(latents, decoder_bias=(D_MODEL,), **gates)
            del state["encoder.bias"]
            return state
        case "JumpReluAutoEncoder":
            return plain(latents, threshold=(latents,))
        case "MatryoshkaBatchTopKSAE":
            return plain(latents) | k | threshold | {"group_sizes": torch.tensor([2, latents - 2])}
    return linear(latents, b_dec=(D_MODEL,)) | k | threshold


def dictionary_folder(
    folder: Path, name: str, state: State | None = None, trainer: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """`config.json` and `ae.pt`; `trainer` and `config` change or add entries."""
    state = dictionary_state(name) if state is None else state
    latents = next((len(state[name]) for name in ("encoder.weight", "b_enc") if name in state), LATENTS)
    sizes = {"dict_class": name, "activation_dim": D_MODEL, "dict_size": latents, "k": K}
    known = {"layer": 15, "lm_name": "org/Model-7b", "submodule_name": "resid_post_layer_15"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": {**sizes, **known, **(trainer or {})}, **config}))
    torch.save(dict(state), folder / "ae.pt")
    return folder


def sparsify_state(latents: int = LATENTS) -> dict[str, Tensor]:
    encoder = {"encoder__weight": (latents, D_MODEL), "encoder__bias": (latents,)}
    return random_state(**encoder, W_dec=(latents, D_MODEL), b_dec=(D_MODEL,))


def sparsify_folder(folder: Path, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """`cfg.json` and `sae.safetensors`, the configuration as older versions wrote it unless `config` adds to it."""
    state = sparsify_state() if state is None else state
    sizes = {"d_in": D_MODEL, "num_latents": len(state["W_dec"]), "expansion_factor": 32, "k": K}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({**sizes, "normalize_decoder": True, **config}))
    save_file(state, folder / "sae.safetensors")
    return folder


def assert_computes(folder: Path, state: State, computes: Computes) -> None:
    x = 2 * torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1)) + 1
    latents, again = computes({name: tensor.double() for name, tensor in state.items()}, x.double())
    sae = load_sae(folder)
    torch.testing.assert_close(sae.encode(x).double(), latents, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(latents.float()).double(), again, atol=2e-5, rtol=1e-5)
    # Some latents are off and some on, or nothing was compared.
    assert 0.02 < (latents > 0).double().mean() < 0.98


@pytest.mark.parametrize("latents", [LATENTS, D_MODEL])
@pytest.mark.parametrize(
    ("name", "computes"),
    {
        "AutoEncoder": autoencoder,
        "AutoEncoderNew": autoencoder_new,
        "GatedAutoEncoder": gated,
        "JumpReluAutoEncoder": jumprelu,
        "AutoEncoderTopK": topk,
        "BatchTopKSAE": batch_topk,
        "MatryoshkaBatchTopKSAE": matryoshka,
    }.items(),
)
def test_dictionary_learning_computes_its_formula(tmp_path: Path, name: str, computes: Computes, latents: int) -> None:
    """Breaks if a matrix is not turned (square ones have no shape to tell), if `b_dec` is subtracted where the class
    does not or the other way round, if a threshold or the gates are lost, or if decoder norms stay where they were."""
    state = dictionary_state(name, latents)
    assert_computes(dictionary_folder(tmp_path, name, state), state, computes)


@pytest.mark.parametrize("latents", [LATENTS, D_MODEL])
@pytest.mark.parametrize("config", [{}, {"normalize_decoder": False, "activation": "topk", "multi_topk": True}])
def test_sparsify_computes_its_formula(tmp_path: Path, config: dict[str, Any], latents: int) -> None:
    """Breaks if the decoder is turned, or if subtracting `b_dec` is made to depend on the configuration."""
    state = sparsify_state(latents)
    assert_computes(sparsify_folder(tmp_path, state, **config), state, sparsify_topk)


def test_sparsify_counts_latents_by_the_expansion_factor(tmp_path: Path) -> None:
    """Breaks if `num_latents` of 0 is taken for the number of latents."""
    state = sparsify_state(latents=4 * D_MODEL)
    folder = sparsify_folder(tmp_path, state, num_latents=0, expansion_factor=4)
    assert_computes(folder, state, sparsify_topk)


@pytest.mark.parametrize("name", ["AutoEncoder", "BatchTopKSAE", "sparsify"])
def test_saved_in_our_format_it_is_the_same(tmp_path: Path, name: str) -> None:
    """Breaks if turned or spread tensors stay views, which cannot be saved, or if a part of the configuration is not
    sae-lens's own."""
    folder = tmp_path / "theirs"
    theirs = sparsify_folder(folder) if name == "sparsify" else dictionary_folder(folder, name)
    sae = load_sae(theirs)
    again = load_sae(save_sae(sae, tmp_path / "ours", "blocks.15.hook_resid_post", "base", {}))
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), sae(x))
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_number_formats(tmp_path: Path) -> None:
    """Breaks if weights stored in bfloat16 stay in it, or if the wanted format is not given."""
    half = {name: tensor.bfloat16() for name, tensor in sparsify_state().items()}
    folder = sparsify_folder(tmp_path, half)
    assert_computes(folder, half, sparsify_topk)
    sae = load_sae(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.bfloat16}
    assert sae.cfg.dtype == "bfloat16"


def test_a_folder_of_sae_lens_stays_one(tmp_path: Path) -> None:
    """Breaks if an `ae.pt` that lies beside sae-lens's files is loaded in their place."""
    folder = save_sae(load_sae(sparsify_folder(tmp_path / "theirs")), tmp_path / "ours", "a", "b", {})
    (folder / "ae.pt").write_bytes(b"")
    assert load_sae(folder).cfg.metadata.hook_name == "a"


@pytest.mark.parametrize(
    ("trainer", "config", "hook"),
    [
        ({}, {}, "blocks.15.hook_resid_post"),
        ({}, {"buffer": {"io": "out", "ctx_len": 128}}, "blocks.15.hook_resid_post"),
        ({"submodule_name": "model.layers.15"}, {}, "blocks.15.hook_resid_post"),
        ({"submodule_name": "model.layers.15"}, {"buffer": {"io": "in"}}, None),
        ({"submodule_name": "model.layers.15.mlp"}, {}, None),
        ({"submodule_name": "attn_out_layer_15"}, {}, None),
        ({"submodule_name": None}, {}, None),
        ({"layer": 14}, {}, None),
    ],
)
def test_dictionary_learning_hook(
    tmp_path: Path, trainer: dict[str, Any], config: dict[str, Any], hook: str | None
) -> None:
    """Breaks if a hook is guessed from `layer` alone, or if one that the files are sure of is lost."""
    metadata = load_sae(dictionary_folder(tmp_path, "BatchTopKSAE", trainer=trainer, **config)).cfg.metadata
    assert metadata.hook_name == hook
    assert metadata.model_name == "org/Model-7b"
    assert metadata.l0 == K


def test_aim_of_jumprelu(tmp_path: Path) -> None:
    """Breaks if the L0 that the training aimed at is lost, or if an SAE without one is refused."""
    known = load_sae(dictionary_folder(tmp_path / "a", "JumpReluAutoEncoder", trainer={"target_l0": 20.0}))
    unknown = load_sae(dictionary_folder(tmp_path / "b", "JumpReluAutoEncoder", trainer={"k": None, "lm_name": ""}))
    assert known.cfg.metadata.l0 == 20
    assert unknown.cfg.metadata.l0 is None
    assert unknown.cfg.metadata.model_name is None


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.10", "blocks.10.hook_resid_post"),
        ("h.3", "blocks.3.hook_resid_post"),
        ("layers.4/seed1", "blocks.4.hook_resid_post"),
        ("layers.0.mlp", None),
        ("embed_tokens", None),
        ("my_sae", None),
    ],
)
def test_sparsify_hook_and_model(tmp_path: Path, name: str, hook: str | None) -> None:
    """Breaks if the output of a part of a block passes for the block's, or if the run's configuration is not found."""
    folder = sparsify_folder(tmp_path / name)
    assert load_sae(folder).cfg.metadata.model_name is None
    (tmp_path / "config.json").write_text(json.dumps({"sae": {"k": K}, "model": "org/Model-1b"}))
    metadata = load_sae(folder).cfg.metadata
    assert (metadata.hook_name, metadata.model_name, metadata.l0) == (hook, "org/Model-1b", K)
    (tmp_path / "config.json").write_text(json.dumps({"model": "something else that lies there"}))
    assert load_sae(folder).cfg.metadata.model_name is None


def refusal(folder: Path) -> str:
    """The sentence with which a folder is refused: it names a file and says what to do."""
    with pytest.raises(UserError) as error:
        load_sae(folder)
    sentence = str(error.value)
    assert str(folder) in sentence
    assert "; " in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("entry", "value"), [("transcode", True), ("skip_connection", True), ("activation", "groupmax"), ("signed", True)]
)
def test_sparsify_beyond_topk_is_refused(tmp_path: Path, entry: str, value: Any) -> None:
    """Breaks if an SAE is loaded that computes something else than it did in sparsify."""
    assert f"cfg.json has {entry}={value}, but only plain TopK" in refusal(sparsify_folder(tmp_path, **{entry: value}))


@pytest.mark.parametrize("k", [0, None, "3", 2.5, True])
def test_k_that_is_no_number_of_latents(tmp_path: Path, k: object) -> None:
    """Breaks if K is not checked before sae-lens meets it."""
    assert f"has k={k}, expected a whole number" in refusal(sparsify_folder(tmp_path / "a", k=k))
    folder = dictionary_folder(tmp_path / "b", "AutoEncoderTopK", trainer={"k": k})
    assert f"has k={k}, expected a whole number" in refusal(folder)


def test_configurations_that_do_not_belong(tmp_path: Path) -> None:
    """Breaks if sizes or K of the two files are not compared."""
    assert "has k=21 active of only 20 latents" in refusal(sparsify_folder(tmp_path / "a", k=21))
    folder = sparsify_folder(tmp_path / "b", num_latents=24)
    assert "encoder.weight of shape (20, 6), but by its configuration it is (24, 6)" in refusal(folder)
    folder = dictionary_folder(tmp_path / "c", "BatchTopKSAE", trainer={"k": 4})
    assert "ae.pt has k=3" in refusal(folder)
    folder = dictionary_folder(tmp_path / "d", "JumpReluAutoEncoder", trainer={"activation_dim": 7})
    assert "W_enc of shape (6, 20), but by its configuration it is (7, 20)" in refusal(folder)
    folder = dictionary_folder(tmp_path / "e", "AutoEncoder", trainer={"dict_size": None})
    assert "has dict_size=None" in refusal(folder)


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    """Breaks if a tensor that changes what is computed is left out unseen; an early BatchTopK kept no threshold and
    cannot encode a row alone."""
    state = dictionary_state("BatchTopKSAE")
    del state["threshold"]
    assert "the file lacks threshold" in refusal(dictionary_folder(tmp_path / "a", "BatchTopKSAE", state))
    with_skip = sparsify_state() | {"W_skip": torch.zeros(D_MODEL, D_MODEL)}
    assert "the file holds W_skip besides" in refusal(sparsify_folder(tmp_path / "b", with_skip))


@pytest.mark.parametrize("name", ["CrossCoder", "IdentityDict", None, ["AutoEncoder"]])
def test_unknown_class(tmp_path: Path, name: object) -> None:
    """Breaks if the class is guessed from the tensors."""
    folder = dictionary_folder(tmp_path, "AutoEncoder", trainer={"dict_class": name})
    assert f"trainer.dict_class={name}, which cannot be opened; choose an SAE of AutoEncoder," in refusal(folder)


@pytest.mark.parametrize(("text", "problem"), [("{", "not valid JSON"), ("[]", "no JSON object"), ("{}", "no entry")])
def test_damaged_configuration(tmp_path: Path, text: str, problem: str) -> None:
    """Breaks if damaged JSON ends in a traceback."""
    folder = dictionary_folder(tmp_path, "AutoEncoder")
    (folder / "config.json").write_text(text)
    assert problem in refusal(folder)


def test_missing_files(tmp_path: Path) -> None:
    """Breaks if a folder with half of a format is not named as what it is."""
    theirs, others = sparsify_folder(tmp_path / "a"), dictionary_folder(tmp_path / "b", "AutoEncoder")
    (theirs / "cfg.json").unlink()
    assert "has an SAE's weights but no cfg.json" in refusal(theirs)
    (others / "config.json").unlink()
    assert "has an SAE's weights but no config.json" in refusal(others)
    (others / "ae.pt").rename(others / "ae_1000.pt")
    with pytest.raises(
        UserError, match=r"no SAE in the format of sae-lens .*, sparsify .* or dictionary_learning \(ae.pt"
    ):
        load_sae(others)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_weights(tmp_path: Path, share: float) -> None:
    """Breaks if what a reader raises on a part of a file is not turned into a sentence."""
    folders = sparsify_folder(tmp_path / "a"), dictionary_folder(tmp_path / "b", "AutoEncoder")
    for folder, name in zip(folders, ("sae.safetensors", "ae.pt"), strict=True):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        assert f"{name} cannot be read" in refusal(folder)


class Intruder:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "your machine is mine")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Breaks if `ae.pt` is opened in a way that runs code in it; or if things other than tensors pass."""
    folder = dictionary_folder(tmp_path / "a", "AutoEncoder")
    torch.save({**dictionary_state("AutoEncoder"), "bias": Intruder(tmp_path / "intruded")}, folder / "ae.pt")
    assert "cannot be read as tensors alone" in refusal(folder)
    assert not (tmp_path / "intruded").exists()
    for content in ([torch.zeros(3)], torch.zeros(3), {"bias": [1.0]}, {0: torch.zeros(3)}):
        torch.save(content, folder / "ae.pt")
        assert "is not the state_dict of an SAE" in refusal(folder)
