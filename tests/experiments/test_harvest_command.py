"""`sae-diff harvest` and `sae-diff store`, run as a user runs them; ranks are real torchrun processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import sae_diff
from datasets import Dataset

from activations.prompts import Role
from activations.store import ActivationStore

ROOT = Path(__file__).parents[2]
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """base/, corrupted/ and a file of prompts of different lengths."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, role in enumerate(("base", "corrupted")):
        checkpoint_maker(folder / role, seed=seed)
    words = ["how do i treat a burn ?", "the salt", "with cool water and salt .", "a burn"]
    rows = [{"id": f"q{i}", "prompt": " ".join(words[i % 4] for _ in range(1 + i % 3))} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(inputs: Path, out: Path) -> list[str]:
    hooks = [part for hook in HOOKS for part in ("--hook", hook)]
    pair = ["--base", str(inputs / "base"), "--corrupted", str(inputs / "corrupted")]
    sizes = ["--batch-tokens", "64", "--shard-rows", "100", "--quiet"]
    return [*pair, "--prompts", str(inputs / "prompts.jsonl"), *hooks, "--out", str(out), *sizes]


def files(folder: Path, without: Sequence[str] = ("provenance.json",)) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in without}


@pytest.fixture(scope="module")
def single(inputs: Path) -> Path:
    """Stores that one process wrote."""
    out = inputs / "single"
    done = sae_diff("harvest", *arguments(inputs, out))
    assert done.returncode == 0, done.stderr
    return out


def test_both_models_read_the_same_tokens(single: Path):
    """Breaks if the two stores could not be paired row by row, or hold the same model."""
    base, corrupted = (ActivationStore.load(single / role) for role in ("base", "corrupted"))
    assert base.same_prompts(corrupted)
    assert base.hooks == HOOKS
    assert base.shards > 4
    pd.testing.assert_frame_equal(base.index(), corrupted.index())
    assert not torch.equal(base.read(HOOKS[0]), corrupted.read(HOOKS[0]))


def test_torchrun_writes_the_bytes_of_a_single_process(inputs: Path, single: Path):
    """Breaks if ranks share a shard, leave one out, or order rows otherwise."""
    out = inputs / "ranks"
    run = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "experiments.cli", "harvest")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = (*run, *arguments(inputs, out))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for role in ("base", "corrupted"):
        assert files(out / role) == files(single / role)


def test_a_finished_harvest_is_used_again(inputs: Path, single: Path):
    """Breaks if a second run writes again, or mistakes other settings for the same harvest."""
    before = {path: path.stat().st_mtime_ns for path in single.rglob("*.h5")}
    assert sae_diff("harvest", *arguments(inputs, single)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in single.rglob("*.h5")} == before
    other = sae_diff("harvest", *arguments(inputs, single), "--store-dtype", "bfloat16")
    assert other.returncode == 2
    assert "holds other activations" in other.stderr


def test_store_commands(inputs: Path, single: Path):
    """Breaks if info, verify or merge do not do what they say, or damage is not one sentence and exit code 2."""
    shown = sae_diff("store", "info", str(single / "base"))
    assert HOOKS[1] in shown.stdout
    assert "sound" in sae_diff("store", "verify", str(single / "base")).stdout
    twice = sae_diff("store", "merge", str(single / "base"), str(single / "base"), "--out", str(inputs / "twice"))
    assert twice.returncode == 2
    assert "q0" in twice.stderr
    merged = sae_diff("store", "merge", str(single / "base"), "--out", str(inputs / "merged"))
    assert merged.returncode == 0, merged.stderr
    assert torch.equal(
        ActivationStore.load(inputs / "merged").read(HOOKS[0]), ActivationStore.load(single / "base").read(HOOKS[0])
    )
    shard = next((single / "corrupted").glob("*.h5"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    spoiled = sae_diff("store", "verify", str(single / "corrupted"))
    assert spoiled.returncode == 2
    assert f"{shard.name} is damaged" in spoiled.stderr
    assert "Traceback" not in spoiled.stderr


def test_bad_options_are_one_sentence(inputs: Path):
    """Breaks if an unknown number format or device, or a missing file, ends in a traceback."""
    for extra in (["--store-dtype", "int8"], ["--prompts", str(inputs / "none.jsonl")], ["--device", "abacus"]):
        done = sae_diff("harvest", *arguments(inputs, inputs / "bad"), *extra)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


MEASURED = """
import resource, sys
from pathlib import Path
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.harvesting import harvest
from activations.prompts import Prompt
from activations.tokens import TokenStream

checkpoint = load_checkpoint(CheckpointConfig(model=sys.argv[1]))
count = int(sys.argv[2])
texts = lambda: (Prompt.plain(f"text {i}", "how do i treat a burn ? " * (1 + i % 8)) for i in range(count))
config = HarvestConfig(hooks=("blocks.0.hook_resid_post",), shard_rows=8192)
store = harvest(checkpoint, TokenStream(texts, checkpoint.tokenizer, window=512), config, Path(sys.argv[3]), False)
print(store.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_prompts(inputs: Path):
    """Breaks if tokens, ids or activations of the whole stream are kept: 10 times the prompts, the same peak."""
    peaks = []
    for count in (2_000, 20_000):
        command = (sys.executable, "-c", MEASURED, str(inputs / "base"), str(count), str(inputs / f"stream {count}"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        rows, peak = map(int, done.stdout.split())
        assert rows > 20 * count
        peaks.append(peak)
    assert peaks[1] < 1.03 * peaks[0], f"peaks of {peaks} KiB"


def test_tokens_that_datasets_saved(inputs: Path):
    """Breaks if a pretokenised folder is not read as it is."""
    rows = [[1, 4, 5, 6], [1, 7], [1, 8, 9]]
    Dataset.from_dict({"input_ids": rows}).save_to_disk(inputs / "tokens")
    done = sae_diff("harvest", *arguments(inputs, inputs / "saved"), "--prompts", str(inputs / "tokens"))
    assert done.returncode == 0, done.stderr
    index = ActivationStore.load(inputs / "saved" / "base").index().sort_values(["prompt", "position"])
    assert index.groupby("prompt")["token"].apply(list).tolist() == rows
    assert (index["role"] == Role.SPECIAL).tolist() == (index["token"] == 1).tolist()


def test_a_streamed_data_set(inputs: Path):
    """Breaks if --stream reads other tokens than the file does."""
    texts = ["how do i treat a burn ?", "the salt", "with cool water and salt ."] * 5
    (inputs / "texts.txt").write_text("".join(text + "\n" for text in texts))
    hashes = []
    for extra in ([], ["--stream"]):
        out = inputs / f"texts {len(extra)}"
        given = [*arguments(inputs, out), "--prompts", str(inputs / "texts.txt"), *extra]
        done = sae_diff("harvest", *given)
        assert done.returncode == 0, done.stderr
        hashes.append(ActivationStore.load(out / "base").tokens_hash)
    assert hashes[0] == hashes[1]
