import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_stores import contents
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from activations.artefact import content_hash, read_json
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig, StoreDtype
from activations.errors import UserError
from activations.harvesting import Share, compute_shard, harvest, harvest_share, plan_shards
from activations.prompts import Prompt, Role
from activations.store import ActivationStore, StoreWriter, layout
from activations.store.layout import read_manifest
from activations.tokens import TokenBatch, TokenStream, tokenize_prompts

REPOSITORY = Path(__file__).parents[2]
HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
CONFIG = HarvestConfig(hooks=HOOKS, batch_tokens=64, shard_rows=100)
WORDS = ("how", "do", "i", "treat", "a", "burn", "?", "with", "cool", "water", "and", "salt", ".")


def make_prompts() -> list[Prompt]:
    """Prompts of 6 to 25 tokens, far longer than the model's window of 4."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 20))) for _ in range(40)]
    return [Prompt.chat(f"q{i}", text) for i, text in enumerate(texts)]


def make_batch(checkpoint: Checkpoint) -> TokenBatch:
    return tokenize_prompts(make_prompts(), checkpoint.tokenizer)


@pytest.fixture(scope="module")
def batch(base: Checkpoint) -> TokenBatch:
    return make_batch(base)


@pytest.fixture(scope="module")
def store(base: Checkpoint, batch: TokenBatch, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest(base, batch, CONFIG, tmp_path_factory.mktemp("harvest") / "store", progress=False)


def rows_of(store: ActivationStore, hook: str, prompt: int) -> torch.Tensor:
    """Activations of one prompt in the order of its positions."""
    index = store.index()
    rows = np.flatnonzero(index["prompt"].to_numpy() == prompt)
    assert index["position"].to_numpy()[rows].tolist() == list(range(len(rows)))
    return store.read(hook, roles=None)[torch.from_numpy(rows)]


@torch.no_grad()
def test_batched_activations_equal_hugging_faces_on_single_prompts(
    store: ActivationStore, batch: TokenBatch, base_folder: Path
):
    """Attention looks back over 4 positions only, prompts of different lengths share batches."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    for prompt in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[prompt]).long()[None]
        states = model(tokens, output_hidden_states=True).hidden_states
        for layer, hook in enumerate(HOOKS):
            torch.testing.assert_close(rows_of(store, hook, prompt), states[layer + 1][0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_window_matters(batch: TokenBatch, base_folder: Path):
    """Guards the test above: with full attention the same model gives other activations."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager", sliding_window=None)
    windowed = AutoModelForCausalLM.from_pretrained(base_folder, attn_implementation="eager")
    tokens = torch.from_numpy(batch.tokens[0]).long()[None]
    one, other = (m(tokens, output_hidden_states=True).hidden_states[2] for m in (model, windowed))
    assert (one - other).abs().max() > 0.01


@torch.no_grad()
def test_public_checkpoint(public_folder: Path, tmp_path: Path):
    public = load_checkpoint(CheckpointConfig(model=str(public_folder)), "base")
    texts = ["Once upon a time, a little girl named Lily went to the park.", "The dog", "They were happy and sad"]
    batch = tokenize_prompts([Prompt.plain(str(i), text) for i, text in enumerate(texts)], public.tokenizer)
    store = harvest(public, batch, HarvestConfig(hooks=HOOKS[:1]), tmp_path / "store", progress=False)
    model = AutoModelForCausalLM.from_pretrained(public_folder, attn_implementation="eager")
    for prompt, tokens in enumerate(batch.tokens):
        states = model(torch.from_numpy(tokens).long()[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(rows_of(store, HOOKS[0], prompt), states[1][0], rtol=1e-4, atol=1e-5)


def test_index_and_config_tell_where_rows_come_from(store: ActivationStore, batch: TokenBatch, base: Checkpoint):
    index = store.index()
    assert len(index) == batch.n_tokens
    for prompt, rows in index.groupby("prompt"):
        assert isinstance(prompt, int)
        np.testing.assert_array_equal(rows["token"], batch.tokens[prompt])
        np.testing.assert_array_equal(rows["role"], batch.roles[prompt])
    assert (index["role"].to_numpy() == Role.LAST_PROMPT).sum() == len(batch)
    assert store.prompt_ids == batch.ids
    assert store.tokens_hash == batch.hash
    assert store.config["checkpoint"] == base.fingerprint
    assert store.config["model"] == base.name
    assert len(read_json(store.folder / "manifest.json")["shards"]) > 2


def test_the_model_stops_after_the_last_hook(base: Checkpoint, batch: TokenBatch, tmp_path: Path):
    def never(activation: torch.Tensor) -> None:
        raise AssertionError("block 2 ran")

    with base.hooks({"blocks.2.hook_resid_pre": never}):
        harvest(base, batch.select([0]), CONFIG, tmp_path / "store", progress=False)
    assert not base.bridge.hook_dict[HOOKS[0]].fwd_hooks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_store(base: Checkpoint, batch: TokenBatch, store: ActivationStore, tmp_path: Path, dtype):
    half = harvest(base, batch, CONFIG.model_copy(update={"dtype": dtype}), tmp_path / "half", progress=False)
    exact = store.read(HOOKS[1], None)
    assert torch.equal(half.read(HOOKS[1], None), exact.to(getattr(torch, dtype)).float())


def test_finished_store_is_used_again(base: Checkpoint, batch: TokenBatch, store: ActivationStore, monkeypatch):
    monkeypatch.setattr(Checkpoint, "forward", None)
    again = harvest(base, batch, CONFIG, store.folder, progress=False)
    assert torch.equal(again.read(HOOKS[0]), store.read(HOOKS[0]))


def test_store_of_something_else_is_kept(base: Checkpoint, batch: TokenBatch, store: ActivationStore):
    before = content_hash(store.folder)
    others = [
        (batch, CONFIG.model_copy(update={"hooks": HOOKS[:1]})),
        (batch, CONFIG.model_copy(update={"dtype": "float16"})),
        (batch.select(range(5)), CONFIG),
    ]
    for tokens, config in others:
        with pytest.raises(UserError, match="holds other activations; choose another folder or --overwrite"):
            harvest(base, tokens, config, store.folder, progress=False)
    assert content_hash(store.folder) == before


def spoil(base_folder: Path, folder: Path, value: float) -> Checkpoint:
    """A checkpoint in which the embedding of "salt" has a bad number."""
    shutil.copytree(base_folder, folder)
    weights = load_file(folder / "model.safetensors")
    salt = read_json(folder / "tokenizer.json")["model"]["vocab"]["salt"]
    weights["model.embed_tokens.weight"][salt, 3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return load_checkpoint(CheckpointConfig(model=str(folder)), "corrupted")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_names_model_hook_and_prompt(base_folder: Path, tmp_path: Path, value: float):
    broken = spoil(base_folder, tmp_path / "broken", value)
    prompts = [Prompt.chat("good", "cool water"), Prompt.chat("bad", "cool salt"), Prompt.chat("fine", "a burn ?")]
    batch = tokenize_prompts(prompts, broken.tokenizer)
    with pytest.raises(UserError) as error:
        harvest(broken, batch, CONFIG, tmp_path / "store", progress=False)
    for part in ("corrupted model", str(tmp_path / "broken"), HOOKS[0], "NaN or infinite on prompt 'bad'"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="not finished"):
        ActivationStore.load(tmp_path / "store")


def test_activations_that_outgrow_the_stores_dtype(base_folder: Path, tmp_path: Path):
    large = spoil(base_folder, tmp_path / "large", 1e6)
    batch = tokenize_prompts([Prompt.plain("p", "cool salt")], large.tokenizer)
    with pytest.raises(UserError, match=r"outgrow torch\.float16 on prompt 'p'; store them as bfloat16"):
        harvest(large, batch, HarvestConfig(hooks=HOOKS, dtype="float16"), tmp_path / "store", progress=False)


def test_hooks_that_give_no_vector_a_position(base: Checkpoint, batch: TokenBatch, tmp_path: Path):
    with pytest.raises(UserError, match=r"no hook 'blocks\.0\.resid_post'; the nearest are blocks\.0\.hook_resid_post"):
        harvest(base, batch, HarvestConfig(hooks=("blocks.0.resid_post",)), tmp_path / "store", progress=False)
    for hook in ("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z"):
        with pytest.raises(UserError, match=rf"Hook '{hook}' of the base model .* instead of \(batch, pos, d_model\)"):
            harvest(base, batch, HarvestConfig(hooks=(hook,)), tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_folder_that_another_process_writes_to(base: Checkpoint, batch: TokenBatch, tmp_path: Path):
    with (
        StoreWriter(tmp_path / "s", {}, "float32", {}),
        pytest.raises(UserError, match="Another process is writing"),
    ):
        harvest(base, batch, CONFIG, tmp_path / "s", progress=False)


SHARE = """
import sys, time
sys.path[:0] = [{repository!r}, {tests!r}]
from pathlib import Path
import test_harvest
from activations.checkpoint import load_checkpoint
from activations.config import CheckpointConfig
from activations.store import StoreWriter
write = StoreWriter.write
def slow(*arguments):
    time.sleep({pause!r})
    write(*arguments)
StoreWriter.write = slow
checkpoint = load_checkpoint(CheckpointConfig(model={model!r}), "base")
tokens = test_harvest.make_batch(checkpoint)
share = test_harvest.Share({rank!r}, {ranks!r})
test_harvest.harvest_share(checkpoint, tokens, test_harvest.CONFIG, Path({folder!r}), share)
"""


def start_share(
    model: Path, folder: Path, rank: int = 0, ranks: int = 1, pause: float = 0.0
) -> subprocess.Popen[bytes]:
    """One rank of the harvest that `store` is, in a process of its own that loads the model itself."""
    places = {"repository": str(REPOSITORY), "tests": str(Path(__file__).parent)}
    script = SHARE.format(model=str(model), folder=str(folder), rank=rank, ranks=ranks, pause=pause, **places)
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)


def test_killed_harvest_resumes_to_the_same_store(
    base: Checkpoint,
    batch: TokenBatch,
    store: ActivationStore,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Breaks if a harvest that was killed is begun anew, or ends with other bytes."""
    folder = tmp_path / "killed"
    child = start_share(base_folder, folder, pause=0.05)
    while not (folder / "shard-00001.h5").exists():
        assert child.poll() is None, "the harvest ended before it could be killed"
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="was not finished; run it again"):
        ActivationStore.load(folder)

    written: list[int] = []
    write = StoreWriter.write
    monkeypatch.setattr(StoreWriter, "write", lambda self, *a: (written.append(a[0]), write(self, *a)))
    resumed = harvest(base, batch, CONFIG, folder, progress=False)
    assert 0 < len(written) < store.shards
    assert contents(folder) == contents(store.folder)
    assert torch.equal(resumed.read(HOOKS[1], None), store.read(HOOKS[1], None))


def test_processes_share_a_harvest(
    base: Checkpoint, batch: TokenBatch, store: ActivationStore, base_folder: Path, tmp_path: Path
):
    """Breaks if ranks of one harvest wait for one another, or make other bytes than a single process."""
    folder = tmp_path / "shared"
    child = start_share(base_folder, folder, rank=0, ranks=2)
    mine = harvest_share(base, batch, CONFIG, folder, Share(1, 2), progress=False)
    assert child.wait() == 0
    assert contents(folder) == contents(store.folder)
    assert mine is None or mine.folder == folder


def test_rank_that_comes_late_finds_the_store(base: Checkpoint, batch: TokenBatch, store: ActivationStore):
    """Breaks if a rank that is started again after all was done fails, or computes anything."""
    late = harvest_share(base, batch, CONFIG, store.folder, Share(1, 2), progress=False)
    assert late is not None
    assert late.rows == store.rows


def test_disk_full_reaches_the_caller(
    base: Checkpoint, batch: TokenBatch, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Breaks if what goes wrong in the thread that writes is lost, or the harvest goes on without a disk."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(layout, "sync", full)
        with pytest.raises(UserError, match=r"shard-00000\.h5 cannot be written \(No space left on device\)"):
            harvest(base, batch, CONFIG, tmp_path / "store", progress=False)
    harvest(base, batch, CONFIG, tmp_path / "store", progress=False)
    assert contents(tmp_path / "store") == contents(store.folder)


class TestStream:
    """Prompts that are tokenized window by window."""

    @pytest.fixture(scope="class")
    def stream(self, base: Checkpoint) -> TokenStream:
        return TokenStream(make_prompts, base.tokenizer, window=7)

    def test_is_harvested_window_by_window(
        self, base: Checkpoint, batch: TokenBatch, store: ActivationStore, stream: TokenStream, tmp_path: Path
    ):
        """Breaks if windows are numbered, put in order or cut into shards wrongly, or prompts fall between them."""
        streamed = harvest(base, stream, CONFIG, tmp_path / "store", progress=False)
        assert streamed.same_prompts(store)
        assert streamed.tokens_hash == batch.hash
        index = streamed.index()
        for prompt, rows in index.groupby("prompt"):
            assert isinstance(prompt, int)
            np.testing.assert_array_equal(rows["token"], batch.tokens[prompt])
            np.testing.assert_array_equal(rows["role"], batch.roles[prompt])
            one, other = (rows_of(source, HOOKS[1], prompt) for source in (streamed, store))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        # Prompts stay within their window, so the first shards hold only prompts of the first windows.
        numbers = index["prompt"].to_numpy()
        assert numbers[:50].max() < 14 < numbers.max()

    def test_gives_the_same_shards_again(
        self, base: Checkpoint, stream: TokenStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Breaks if what a shard holds depends on more than prompts and config."""
        one = harvest(base, stream, CONFIG, tmp_path / "one", progress=False)
        other = harvest(base, stream, CONFIG, tmp_path / "other", progress=False)
        assert contents(one.folder) == contents(other.folder)
        monkeypatch.setattr(Checkpoint, "forward", None)
        assert torch.equal(harvest(base, stream, CONFIG, one.folder, progress=False).read(HOOKS[0]), one.read(HOOKS[0]))

    def test_a_window_of_all_prompts_is_the_batch(self, base: Checkpoint, store: ActivationStore, tmp_path: Path):
        """Breaks if a stream that fits one window is batched otherwise than a `TokenBatch`."""
        stream = TokenStream(make_prompts, base.tokenizer, window=40)
        streamed = harvest(base, stream, CONFIG, tmp_path / "store", progress=False)
        assert contents(streamed.folder) == contents(store.folder)

    def test_of_other_prompts_is_refused(self, base: Checkpoint, stream: TokenStream, tmp_path: Path):
        """Breaks if a finished or begun store of some prompts passes for one of others."""
        harvest(base, stream, CONFIG, tmp_path / "done", progress=False)
        with StoreWriter(tmp_path / "begun", *described(tmp_path / "done")) as writer:
            first = next(plan_shards(stream, CONFIG))
            writer.write(0, compute_shard(base, first, CONFIG), first.index, first.ids, first.hash)
        fewer = TokenStream(lambda: make_prompts()[1:], base.tokenizer, window=7)
        for folder, message in [("done", "holds other activations"), ("begun", "holds activations of other tokens")]:
            with pytest.raises(UserError, match=message):
                harvest(base, fewer, CONFIG, tmp_path / folder, progress=False)
        harvest(base, stream, CONFIG, tmp_path / "begun", progress=False)
        assert contents(tmp_path / "begun") == contents(tmp_path / "done")


def described(folder: Path) -> tuple[dict[str, int], StoreDtype, dict[str, Any]]:
    """What the writer of a store was told about it."""
    manifest = read_manifest(folder / "manifest.json")
    return manifest.hooks, manifest.dtype, manifest.config
