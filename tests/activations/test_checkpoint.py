import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.checkpoint_files import check_checkpoint
from activations.config import CheckpointConfig
from activations.errors import UserError

Maker = Callable[..., Path]
HOOK = "blocks.1.hook_resid_post"
TOKENS = torch.arange(3, 19)[None]
MASK = torch.ones_like(TOKENS)


def config(folder: Path, **options: str) -> CheckpointConfig:
    return CheckpointConfig(model=str(folder), **options)  # pyright: ignore[reportArgumentType]


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    """Logits on TOKENS."""
    found = checkpoint.forward(TOKENS, MASK).logits
    assert found is not None
    return found


@pytest.fixture
def spoiled(base_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(base_folder, tmp_path / "spoiled"))


def make_adapter(base_folder: Path, folder: Path) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base_folder, tmp_path_factory.mktemp("adapters") / "adapter")


@torch.no_grad()
def test_logits_equal_hugging_faces(base: Checkpoint, base_folder: Path):
    reference = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    assert torch.equal(logits(base), reference(TOKENS, attention_mask=MASK).logits)
    assert (base.d_model, base.layers, base.role) == (32, 3, "base")
    assert base.device == torch.device("cpu")
    assert base.name == str(base_folder)
    assert not base.hf.training
    assert not any(weight.requires_grad for weight in base.hf.parameters())


@torch.no_grad()
def test_public_checkpoint(public_folder: Path):
    public = load_checkpoint(config(public_folder), "base")
    reference = AutoModelForCausalLM.from_pretrained(public_folder, attn_implementation="eager")
    tokens = public.tokenizer("Once upon a time, a little girl named Lily", return_tensors="pt").input_ids
    ours = public.forward(tokens, torch.ones_like(tokens)).logits
    torch.testing.assert_close(ours, reference(tokens).logits, rtol=0, atol=1e-5)
    assert (public.d_model, public.layers) == (128, 2)


@torch.no_grad()
def test_cache_continues_a_prompt(base: Checkpoint):
    first = base.forward(TOKENS[:, :9], MASK[:, :9], use_cache=True)
    second = base.forward(TOKENS[:, 9:], MASK, past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits, logits(base)[:, 9:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hooks_see_replace_and_go(base: Checkpoint):
    plain = logits(base)
    seen = []
    with base.hooks({HOOK: lambda h: seen.append(h.clone())}):
        assert torch.equal(logits(base), plain)
    assert seen[0].shape == (1, 16, 32)
    with base.hooks({HOOK: lambda h: h + 1.0}):
        assert not torch.equal(logits(base), plain)
    with pytest.raises(RuntimeError, match="inside"), base.hooks({HOOK: lambda h: h + 1.0}):
        raise RuntimeError("inside")
    assert torch.equal(logits(base), plain)
    assert len(seen) == 1
    assert not base.bridge.hook_dict[HOOK].fwd_hooks


def test_hook_typo_lists_the_nearest(base: Checkpoint):
    for use in (base.require_hook, lambda name: base.hooks({name: lambda h: None}).__enter__()):
        with pytest.raises(
            UserError, match=r"base model .* no hook 'blocks\.1\.hook_resid_pots'.*blocks\.1\.hook_resid_post"
        ):
            use("blocks.1.hook_resid_pots")
    with pytest.raises(UserError, match="the nearest are"):
        base.require_hook("")
    assert not base.bridge.hook_dict[HOOK].fwd_hooks


def test_fingerprint_follows_the_content(base: Checkpoint, spoiled: Path):
    assert load_checkpoint(config(spoiled)).fingerprint == base.fingerprint
    weights = load_file(spoiled / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    assert load_checkpoint(config(spoiled)).fingerprint != base.fingerprint


def test_dtype_and_unknown_options(base_folder: Path):
    half = load_checkpoint(config(base_folder, dtype="bfloat16"))
    assert logits(half).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="Extra inputs"):
        config(base_folder, fp8="yes")


@torch.no_grad()
def test_merged_adapter_equals_peft(base: Checkpoint, base_folder: Path, adapter: Path):
    merged = load_checkpoint(config(base_folder, adapter=str(adapter)), "corrupted")
    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    reference = PeftModel.from_pretrained(model, adapter)(TOKENS, attention_mask=MASK).logits
    ours = logits(merged)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    assert (ours - logits(base)).abs().max() > 0.1
    assert merged.fingerprint != base.fingerprint
    assert str(adapter) in merged.name
    require_same_tokenizer(base, merged)


def test_adapter_for_another_base(base_folder: Path, adapter: Path, tmp_path: Path, checkpoint_maker: Maker):
    other = checkpoint_maker(tmp_path / "other")
    with pytest.raises(UserError, match=rf"corrupted adapter {adapter} was made for .*base, not for {other}"):
        load_checkpoint(config(other, adapter=str(adapter)), "corrupted")
    wider = checkpoint_maker(tmp_path / "wide" / "base", d_model=64)
    with pytest.raises(UserError, match=rf"corrupted adapter {adapter} does not fit {wider} \(.*shape"):
        load_checkpoint(config(wider, adapter=str(adapter)), "corrupted")


def spoil_adapter(adapter: Path, folder: Path, weights: dict[str, torch.Tensor] | None, **settings: object) -> Path:
    shutil.copytree(adapter, folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, **settings}))
    if weights is not None:
        save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_adapter_whose_weights_have_other_names(base_folder: Path, adapter: Path, tmp_path: Path):
    """peft would leave the adapter at zero, and warn."""
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.2", "layers.9"): weight for name, weight in weights.items()}
    folder = spoil_adapter(adapter, tmp_path / "renamed", renamed)
    with pytest.raises(UserError, match="does not fit"):
        load_checkpoint(config(base_folder, adapter=str(folder)), "corrupted")
    folder = spoil_adapter(adapter, tmp_path / "modules", None, target_modules=["query_key_value"])
    with pytest.raises(UserError, match="does not fit"):
        load_checkpoint(config(base_folder, adapter=str(folder)), "corrupted")


def test_adapter_folders_that_lack_something(base_folder: Path, adapter: Path, tmp_path: Path):
    folder = spoil_adapter(adapter, tmp_path / "adapter", None)
    for name, message in [
        ("adapter_model.safetensors", "has no adapter_model"),
        ("adapter_config.json", "has no adapter_config"),
    ]:
        (folder / name).unlink()
        with pytest.raises(UserError, match=message):
            check_checkpoint(config(base_folder, adapter=str(folder)), "corrupted")
    with pytest.raises(UserError, match=r"The corrupted adapter \./nowhere is not a folder"):
        check_checkpoint(config(base_folder, adapter="./nowhere"), "corrupted")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_folder_that_lacks_a_file(spoiled: Path, name: str):
    (spoiled / name).unlink()
    with pytest.raises(UserError, match=rf"corrupted model {spoiled} has no {name}"):
        load_checkpoint(config(spoiled), "corrupted")


def test_missing_folder(tmp_path: Path):
    with pytest.raises(UserError, match=f"The base model {tmp_path}/nowhere is not a folder"):
        load_checkpoint(config(tmp_path / "nowhere"), "base")


def test_name_that_is_neither_a_folder_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"The base model runs/nowhere can't be loaded \(.*\); check the name"):
        load_checkpoint(CheckpointConfig(model="runs/nowhere"), "base")


def test_revision_of_a_folder(base_folder: Path):
    with pytest.raises(UserError, match="is a folder, so it has no revision main"):
        check_checkpoint(config(base_folder, revision="main"))


@pytest.mark.parametrize("size", [4, 100, -1000])
def test_truncated_weights(spoiled: Path, size: int):
    """Within the header's length, within the header, within the tensors."""
    path = spoiled / "model.safetensors"
    os.truncate(path, size if size > 0 else path.stat().st_size + size)
    with pytest.raises(UserError, match=r"base model .* is half-written: model\.safetensors has"):
        load_checkpoint(config(spoiled), "base")


def test_weights_that_lack_a_tensor(spoiled: Path):
    """Hugging Face would fill it with random numbers, and warn."""
    weights = load_file(spoiled / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_checkpoint(config(spoiled), "base")


def test_sharded_weights(tmp_path: Path, base: Checkpoint, checkpoint_maker: Maker):
    folder = checkpoint_maker(tmp_path / "sharded", shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits(load_checkpoint(config(folder))), logits(base))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"half-written: {shards[1].name} is missing"):
        load_checkpoint(config(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"damaged model\.safetensors\.index\.json"):
        load_checkpoint(config(folder))


def other_words(make: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    words = list(make().get_vocab())
    words.sort(key=make().get_vocab().__getitem__)
    words[-1], words[-2] = words[-2], words[-1]
    return make(words)


def other_template(make: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make(template="{{ messages }}")


def other_special(make: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    tokenizer = make()
    tokenizer.eos_token = "."
    return tokenizer


def lower_case(make: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    from tokenizers import normalizers

    tokenizer = make()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_words, r"vocabulary \(2 tokens, such as '\.'\)"),
        (other_template, "chat template"),
        (other_special, "special tokens"),
        (lower_case, "normalizer"),
    ],
)
def test_tokenizers_that_differ(
    base: Checkpoint, spoiled: Path, tokenizer_maker: Callable[..., PreTrainedTokenizerFast], change, message: str
):
    change(tokenizer_maker).save_pretrained(spoiled)
    other = load_checkpoint(config(spoiled), "corrupted")
    with pytest.raises(UserError, match=rf"the base model .* and the corrupted model .* differ in their {message}"):
        require_same_tokenizer(base, other)


def test_loading_is_silent(base_folder: Path, capfd: pytest.CaptureFixture[str]):
    load_checkpoint(config(base_folder))
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_that_names_its_own_device_or_dtype_keeps_it():
    """Breaks if a run's device silently replaces one that the user wrote beside the model."""
    plain, own = CheckpointConfig(model="m"), CheckpointConfig(model="m", device="cuda:1")
    assert plain.placed("cuda", "bfloat16") == CheckpointConfig(model="m", device="cuda", dtype="bfloat16")
    assert own.placed("cuda", "bfloat16") == CheckpointConfig(model="m", device="cuda:1", dtype="bfloat16")
