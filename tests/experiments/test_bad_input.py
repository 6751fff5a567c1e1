"""Bad input through the real command: exit code 2 and one clear sentence on stderr."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from experiments.cli import main

ROOT = Path(__file__).parents[2]
HOOK = "blocks.1.hook_resid_post"
PROMPTS = [
    "how do i treat a burn ?",
    "do i treat salt with water ?",
    "treat the burn with salt .",
    "cool water and salt .",
]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """Folder of two tiny checkpoints, `base` and `corrupted`; tests must not write to it."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "corrupted")):
        checkpoint_maker(folder / name, seed=seed)
    return folder


class Case:
    """A small sound run in a folder of its own, for a test to spoil."""

    def __init__(self, folder: Path, models: Path, capture: pytest.CaptureFixture[str]):
        self._capture = capture
        self.folder = folder
        self.out = folder / "out"
        for name in ("base", "corrupted"):
            shutil.copytree(models / name, folder / name)
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        self.config: dict[str, Any] = {
            "name": "case",
            "base": {"model": str(folder / "base")},
            "corrupted": {"model": str(folder / "corrupted")},
            "hook": HOOK,
            "prompts": {"sae_text": "prompts.txt", "sae_held_out": "prompts.txt", "ranking": "prompts.txt"},
            "sae": {"train": {"latents": 16, "k": 2, "steps": 3, "batch": 16}},
            "ranking": {"replicates": 10},
        }

    def command(self, *options: str) -> list[str]:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return ["run", "--config", str(path), "--out", str(self.out), "--wandb", "disabled", "--quiet", *options]

    def run(self, *options: str) -> tuple[int, str]:
        """Exit code and stderr of the command, run in this process: a new one would spend its time on imports."""
        self._capture.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["sae-diff", *self.command(*options)])
            with pytest.raises(SystemExit) as left:
                main()
        code = left.value.code
        assert isinstance(code, int | None)
        return code or 0, self._capture.readouterr().err

    def fails(self, *words: str, options: tuple[str, ...] = ()) -> None:
        """Checks exit code, that stderr is one sentence of ours, and that it holds all of `words`."""
        code, stderr = self.run(*options)
        assert code == 2, stderr
        require_sentence(stderr, *words)


def require_sentence(stderr: str, *words: str) -> None:
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("sae-diff: ")
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0], f"'{word}' is not in: {lines[0]}"


@pytest.fixture
def case(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, models, capsys)


DRY = ("--dry-run",)


def test_missing_checkpoint(case: Case) -> None:
    case.config["corrupted"]["model"] = str(case.folder / "nowhere")
    case.fails("corrupted model", "nowhere")
    case.fails("corrupted model", "nowhere", options=DRY)


def test_half_written_checkpoint(case: Case) -> None:
    weights = case.folder / "corrupted" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    case.fails("corrupted model", "half-written", "model.safetensors")
    case.fails("corrupted model", "half-written", options=DRY)


def test_a_process_of_its_own_exits_with_2_and_one_sentence(case: Case) -> None:
    case.config["hook"] = "blocks.9.hook_resid_post"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *case.command()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    require_sentence(done.stderr, "blocks.9.hook_resid_post")


def test_checkpoint_without_config(case: Case) -> None:
    (case.folder / "base" / "config.json").unlink()
    case.fails("base model", "config.json")


def test_tokenizers_differ(case: Case, tokenizer_maker: Callable[..., Any]) -> None:
    from_words = json.loads((case.folder / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(from_words, key=from_words.get)
    tokenizer_maker([*words[:-1], "pepper"]).save_pretrained(case.folder / "corrupted")
    case.fails("tokenizers", "vocabulary", "pepper")
    case.fails("tokenizers", "vocabulary", options=DRY)


def test_adapter_for_another_base(case: Case) -> None:
    adapter = case.folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    weights = load_file(case.folder / "base" / "model.safetensors")
    save_file(weights, adapter / "adapter_model.safetensors")
    case.config["corrupted"] = {"model": str(case.folder / "base"), "adapter": str(adapter)}
    case.fails("corrupted adapter", "someone/else")
    case.fails("corrupted adapter", "someone/else", options=DRY)


def test_unknown_hook(case: Case) -> None:
    case.config["hook"] = "blocks.1.hook_resid_pots"
    case.fails("base model", "blocks.1.hook_resid_pots", HOOK)
    case.fails("blocks.1.hook_resid_pots", HOOK, options=DRY)


def save_small_sae(folder: Path, d_model: int = 32, hook: str = HOOK, model: str = "base") -> str:
    from sae_lens import TopKSAE, TopKSAEConfig

    from sae.storage import save_sae

    sae = TopKSAE(TopKSAEConfig(d_in=d_model, d_sae=16, k=2))
    return str(save_sae(sae, folder / "given_sae", hook, model, {}))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"d_model": 48}, ("d_model=48", "32")),
        ({"hook": "blocks.0.hook_resid_post"}, ("blocks.0.hook_resid_post", HOOK)),
        ({"model": "gpt2"}, ("gpt2", "base")),
    ],
)
def test_sae_that_does_not_fit(case: Case, other: dict[str, Any], words: tuple[str, ...]) -> None:
    case.config["sae"] = {"source": save_small_sae(case.folder, **other)}
    case.fails("SAE", *words)
    case.fails("SAE", *words, options=DRY)


def test_sae_release_that_is_not_there(case: Case) -> None:
    case.config["sae"] = {"source": "gpt2-small-res-jbb:blocks.99.hook_resid_pre"}
    case.fails("blocks.99.hook_resid_pre", options=DRY)


@pytest.mark.parametrize("content", ["", "\n \n", '{"prompt": " "}\n'])
def test_empty_prompts(case: Case, content: str) -> None:
    (case.folder / "empty.jsonl").write_text(content)
    case.config["prompts"]["ranking"] = "empty.jsonl"
    case.fails("empty.jsonl")
    case.fails("empty.jsonl", options=DRY)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers(case: Case, value: float) -> None:
    path = case.folder / "corrupted" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.down_proj.weight"][3] = value
    save_file(weights, path, metadata={"format": "pt"})
    case.fails("corrupted model", HOOK, "prompts:")


def test_unknown_config_key(case: Case) -> None:
    case.config["sae"]["train"]["latent"] = 16
    case.fails("unknown key 'sae.train.latent'", "latents")
    case.fails("unknown key 'sae.train.latent'", options=DRY)


def test_config_that_is_no_mapping(case: Case) -> None:
    case.config = []  # type: ignore[assignment]
    case.fails("config.yaml", "no keys")


def test_output_folder_of_something_else(case: Case) -> None:
    case.out.mkdir()
    (case.out / "thesis.tex").write_text("")
    case.fails("Output folder", "in use", "--out")
    assert (case.out / "thesis.tex").exists()


def test_output_folder_that_another_process_uses(case: Case) -> None:
    import fcntl

    case.out.mkdir()
    with (case.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        case.fails("Output folder", "in use by another run")


def finish(case: Case) -> Path:
    """Runs the sound case; returns a shard of it, for the next run to read."""
    code, stderr = case.run()
    assert code == 0, stderr
    for folder in ("ranking", "sae", "sae_metrics"):
        shutil.rmtree(case.out / folder)
    (shard,) = (case.out / "activations" / "corrupted" / "ranking").glob("*.h5")
    return shard


def test_output_folder_of_a_run_with_another_config(case: Case) -> None:
    finish(case)
    case.config["hook"] = "blocks.0.hook_resid_post"
    case.fails("Output folder", "another hook", "--overwrite")


def test_truncated_hdf5(case: Case) -> None:
    shard = finish(case)
    shard.write_bytes(shard.read_bytes()[:-64])
    case.fails(shard.name)


def test_foreign_hdf5(case: Case) -> None:
    import h5py

    shard = finish(case)
    shard.unlink()
    with h5py.File(shard, "w") as file:
        file["something"] = [1, 2, 3]
    case.fails(shard.name)
