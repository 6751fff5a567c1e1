import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from activations.artefact import content_hash, read_json, write_json
from activations.errors import UserError
from activations.prompts import NON_SPECIAL, Role
from activations.store import ActivationStore, StoreDtype, StoreWriter

REPOSITORY = Path(__file__).parents[2]
HOOKS = {"blocks.0.hook_resid_post": 6, "blocks.1.hook_resid_post": 4}
HOOK = "blocks.0.hook_resid_post"
CONFIG = {"prompt_ids": [f"p{i}" for i in range(8)], "tokens_hash": "abc", "model": "runs/base"}

Batch = tuple[dict[str, Tensor], dict[str, np.ndarray]]


def batch(number: int, rows: int = 700) -> Batch:
    """One prompt a batch; its first position is special."""
    generator = torch.Generator().manual_seed(number)
    activations = {hook: torch.randn(rows, d_model, generator=generator) for hook, d_model in HOOKS.items()}
    role = np.full(rows, Role.PROMPT)
    role[0], role[-1] = Role.SPECIAL, Role.LAST_PROMPT
    return activations, {
        "token": np.arange(rows) + 1000 * number,
        "prompt": np.full(rows, number),
        "position": np.arange(rows),
        "role": role,
    }


def write(
    folder: Path, batches: int = 8, dtype: StoreDtype = "float32", shard_rows: int = 2000, kill: str = ""
) -> None:
    """Writes (or resumes) a store; dies at the moment that `kill` names."""
    with StoreWriter(folder, HOOKS, dtype, CONFIG, shard_rows) as writer:
        for number in range(writer.finished_batches, batches):
            activations, index = batch(number)
            writer.append(activations, **index)
            if kill == "between batches" and number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        writer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "whole"
    write(folder)
    return folder


@pytest.fixture
def spoiled(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "spoiled"))


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def everything(hook: str = HOOK, batches: int = 8) -> Tensor:
    return torch.cat([batch(i)[0][hook] for i in range(batches)])


def test_rows_come_back_bit_equal_and_in_order(whole: Path):
    store = ActivationStore.load(whole)
    store.verify()
    assert store.hooks == tuple(HOOKS)
    assert (store.rows, store.d_model("blocks.1.hook_resid_post")) == (5600, 4)
    assert store.prompt_ids[7] == "p7"
    assert store.tokens_hash == "abc"
    index = store.index()
    for name in ("token", "prompt", "position", "role"):
        np.testing.assert_array_equal(index[name], np.concatenate([batch(i)[1][name] for i in range(8)]))
    for hook in HOOKS:
        assert torch.equal(store.read(hook, roles=None), everything(hook))


def test_chunks_carry_their_own_rows_of_the_index(whole: Path):
    store = ActivationStore.load(whole)
    start, index = 0, store.index()
    for rows, part in store.chunks(HOOK):
        assert torch.equal(rows, everything()[start : start + len(rows)])
        for name, column in part.items():
            np.testing.assert_array_equal(column, index[name][start : start + len(rows)])
        start += len(rows)
    assert start == store.rows


def test_roles_choose_rows(whole: Path):
    store = ActivationStore.load(whole)
    last = torch.stack([batch(i)[0][HOOK][-1] for i in range(8)])
    assert torch.equal(store.read(HOOK, {Role.LAST_PROMPT}), last)
    assert len(store.read(HOOK)) == store.rows - 8
    assert store.read(HOOK, {Role.ANSWER}).shape == (0, 6)


def test_plain_h5py_reads_a_shard(whole: Path):
    with h5py.File(whole / "shard-00000.h5") as file:
        assert sorted(file) == ["activations", "position", "prompt", "role", "token"]
        np.testing.assert_array_equal(dataset(file, f"activations/{HOOK}")[:700], batch(0)[0][HOOK].numpy())
        assert [str(dataset(file, name).dtype) for name in ("token", "prompt", "position", "role")] == ["int32"] * 3 + [
            "uint8"
        ]
        assert dataset(file, f"activations/{HOOK}").chunks == (2100, 6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_exact(tmp_path: Path, dtype: StoreDtype):
    write(tmp_path / "half", dtype=dtype)
    store = ActivationStore.load(tmp_path / "half")
    assert torch.equal(store.read(HOOK, None), everything().to(getattr(torch, dtype)).float())
    with h5py.File(tmp_path / "half" / "shard-00000.h5") as file:
        stored = dataset(file, f"activations/{HOOK}")
        assert str(stored.dtype) == {"bfloat16": "uint16", "float16": "float16"}[dtype]
        if dtype == "bfloat16":
            assert stored.attrs["dtype"] == "bfloat16"
            decoded = np.left_shift(stored[:], 16, dtype=np.uint32).view(np.float32)
            np.testing.assert_array_equal(decoded, store.read(HOOK, None)[: len(stored)].numpy())


def test_a_shard_larger_than_a_chunk(tmp_path: Path):
    rows = torch.arange(9000.0)[:, None].expand(-1, 3)
    with StoreWriter(tmp_path / "s", {"h": 3}, "float32", CONFIG, 4096) as writer:
        column = np.zeros(9000)
        writer.append({"h": rows}, token=column, prompt=column, position=np.arange(9000), role=column + 1)
        store = writer.close()
    assert [len(part) for part, _ in store.chunks("h")] == [4096, 4096, 808]
    assert torch.equal(store.read("h"), rows)


def test_batches_hold_every_row_once_an_epoch(whole: Path):
    store = ActivationStore.load(whole)
    expected = store.read(HOOK)
    batches = list(store.batches(HOOK, 512, seed=0, epochs=2))
    assert {len(rows) for rows in batches[:-1]} == {512}
    drawn = torch.cat(batches)
    assert len(drawn) == 2 * len(expected)
    assert torch.equal(drawn[:, 0].sort().values, torch.cat([expected, expected])[:, 0].sort().values)


def test_batches_are_mixed_over_shards_and_follow_the_seed(whole: Path):
    store = ActivationStore.load(whole)
    place = {value: row for row, value in enumerate(store.read(HOOK)[:, 0].tolist())}
    first = next(store.batches(HOOK, 1024, seed=3))
    rows = np.array([place[value] for value in first[:, 0].tolist()])
    shares = np.histogram(rows, bins=3, range=(0, len(place)))[0] / len(rows)
    assert (abs(shares - 1 / 3) < 0.07).all()
    assert torch.equal(first, next(store.batches(HOOK, 1024, seed=3)))
    assert not torch.equal(first, next(store.batches(HOOK, 1024, seed=4)))


def test_batches_do_not_end(tmp_path: Path):
    """With more rows than the pool has, so that batches leave it before the store is read to its end."""
    rows = torch.arange(80000.0)[:, None]
    column = np.zeros(40000)
    with StoreWriter(tmp_path / "s", {"h": 1}, "float32", CONFIG, 20000) as writer:
        for half in rows.split(40000):
            writer.append({"h": half}, token=column, prompt=column, position=column, role=column + 1)
        store = writer.close()
    endless = store.batches("h", 10000, seed=0)
    drawn = torch.cat([next(endless) for _ in range(40)])
    assert drawn.shape == (400000, 1)
    counts = torch.bincount(drawn[:, 0].long(), minlength=80000)
    # Five epochs; a row may still wait in the pool for some of its turns, or have come back early.
    assert counts.max() <= 6
    assert (counts >= 4).float().mean() > 0.8
    once = torch.cat(list(store.batches("h", 10000, seed=0, epochs=1)))
    assert torch.equal(once[:, 0].sort().values, rows[:, 0])


def test_batches_without_rows_of_a_role_say_so(whole: Path):
    with pytest.raises(UserError, match="no rows of the wanted roles"):
        next(ActivationStore.load(whole).batches(HOOK, 8, seed=0, roles={Role.ANSWER}))


def test_unknown_hook_lists_what_there_is(whole: Path):
    store = ActivationStore.load(whole)
    for ask in (
        store.d_model,
        store.read,
        lambda hook: next(store.chunks(hook)),
        lambda h: next(store.batches(h, 8, 0)),
    ):
        with pytest.raises(
            UserError, match=r"no activations of blocks\.7.*only of blocks\.0\.hook_resid_post, blocks\.1"
        ):
            ask("blocks.7.hook_resid_post")


KILLED = """
import os, signal, sys
sys.path[:0] = [{repository!r}, {tests!r}]
from pathlib import Path
import activations.store as store, test_store
moment, shard = {moment!r}, {shard!r}
real_write, real_publish = store._write_shard, store.publish
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def write(path, *rest):
    real_write(path, *rest)
    if moment == "half a shard" and shard in path.name:
        os.truncate(path, path.stat().st_size // 2)
        die()
def publish(temporary, path):
    if moment == "before its name" and path.name == shard:
        die()
    real_publish(temporary, path)
    if moment == "before the manifest" and path.name == shard:
        die()
store._write_shard, store.publish = write, publish
test_store.write(Path({folder!r}), kill=moment)
"""


def test_kill_at_any_moment_loses_nothing_that_was_written(whole: Path, tmp_path: Path):
    """One writer after another is killed on the same folder; the last one finishes it."""
    folder = tmp_path / "killed"
    names = {"repository": str(REPOSITORY), "tests": str(Path(__file__).parent), "folder": str(folder)}
    for moment, shard, whole_shards in [
        ("half a shard", "shard-00000.h5", 0),
        ("before its name", "shard-00001.h5", 1),
        ("before the manifest", "shard-00001.h5", 1),
        ("between batches", "", 1),
    ]:
        script = KILLED.format(moment=moment, shard=shard, **names)
        killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(read_json(folder / "manifest.json")["shards"]) == whole_shards, moment
        with pytest.raises(UserError, match="was not finished"):
            ActivationStore.load(folder)
    write(folder)
    assert content_hash(folder) == content_hash(whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_left_without_close_a_store_goes_on_later(whole: Path, tmp_path: Path):
    folder = tmp_path / "store"
    with StoreWriter(folder, HOOKS, "float32", CONFIG, 2000) as writer:
        for number in range(5):
            activations, index = batch(number)
            writer.append(activations, **index)
        assert writer.finished_batches == 3
    # The folder of checkpoints was moved meanwhile: only the display name differs.
    with StoreWriter(folder, HOOKS, "float32", {**CONFIG, "model": "moved"}, 2000) as writer:
        assert writer.finished_batches == 3
    write(folder)
    assert content_hash(folder) == content_hash(whole)


def test_two_writers_of_one_folder(tmp_path: Path):
    with StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG), pytest.raises(UserError, match="Another process"):
        StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG)
    StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG).release()


def test_writer_refuses_folders_that_hold_something_else(whole: Path, tmp_path: Path):
    with pytest.raises(UserError, match="finished artefact; choose another folder or --overwrite"):
        StoreWriter(whole, HOOKS, "float32", CONFIG)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match=r"in use: it holds thesis\.txt"):
        StoreWriter(tmp_path / "notes", HOOKS, "float32", CONFIG)
    StoreWriter(tmp_path / "begun", HOOKS, "float32", CONFIG).release()
    others: list[tuple[dict[str, int], StoreDtype, dict[str, object]]] = [
        ({HOOK: 6}, "float32", CONFIG),
        (HOOKS, "float16", CONFIG),
        (HOOKS, "float32", {**CONFIG, "seed": 1}),
    ]
    for hooks, dtype, config in others:
        with pytest.raises(UserError, match="holds other activations"):
            StoreWriter(tmp_path / "begun", hooks, dtype, config)


def test_writer_checks_shapes_and_config(tmp_path: Path):
    with pytest.raises(ValueError, match="prompt_ids"):
        StoreWriter(tmp_path / "s", HOOKS, "float32", {})
    activations, index = batch(0)
    with (
        StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG) as writer,
        pytest.raises(ValueError, match=r"\(700, 6\)"),
    ):
        writer.append({**activations, HOOK: activations[HOOK][:5]}, **index)


def test_truncated_shard(spoiled: Path):
    path = spoiled / "shard-00001.h5"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(
        UserError, match=r"shard-00001\.h5 has \d+ bytes, the manifest says \d+; delete .*harvest again"
    ):
        ActivationStore.load(spoiled)


def test_missing_shard(spoiled: Path):
    (spoiled / "shard-00002.h5").unlink()
    with pytest.raises(UserError, match=r"shard-00002\.h5 is missing"):
        ActivationStore.load(spoiled)


def relist(folder: Path, name: str) -> None:
    """Makes the manifest agree with a shard's size, so that its content is what has to be noticed."""
    manifest = read_json(folder / "manifest.json")
    for shard in manifest["shards"]:
        if shard["name"] == name:
            shard["bytes"] = (folder / name).stat().st_size
    write_json(folder / "manifest.json", manifest)


def test_foreign_file_in_the_place_of_a_shard(spoiled: Path):
    name = "shard-00000.h5"
    (spoiled / name).write_bytes(b"not HDF5 at all" * 100)
    relist(spoiled, name)
    with pytest.raises(UserError, match=r"shard-00000\.h5 is not a shard of activations"):
        ActivationStore.load(spoiled)
    with h5py.File(spoiled / name, "w") as file:
        file["images"] = np.zeros(10)
    relist(spoiled, name)
    with pytest.raises(UserError, match=r"shard-00000\.h5 is not a shard of activations"):
        ActivationStore.load(spoiled)


def test_shard_of_another_layout(spoiled: Path, tmp_path: Path):
    name = "shard-00002.h5"
    shutil.copy(spoiled / "shard-00000.h5", spoiled / name)
    relist(spoiled, name)
    with pytest.raises(UserError, match=r"shard-00002\.h5 is not laid out as the manifest says"):
        ActivationStore.load(spoiled)


def test_flipped_byte_is_noticed_by_verify_and_by_the_first_read(spoiled: Path):
    path = spoiled / "shard-00001.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    store = ActivationStore.load(spoiled)
    for read in (store.verify, store.index, lambda: store.read(HOOK), lambda: list(store.batches(HOOK, 8, 0, 1))):
        with pytest.raises(UserError, match=r"shard-00001\.h5 is damaged: its checksum is"):
            read()


def test_manifest_of_another_version_or_damaged(spoiled: Path):
    manifest = read_json(spoiled / "manifest.json")
    write_json(spoiled / "manifest.json", {**manifest, "version": 99})
    with pytest.raises(UserError, match=r"manifest\.json has version 99, this code reads version 1"):
        ActivationStore.load(spoiled)
    write_json(spoiled / "manifest.json", {**manifest, "shards": [{"name": "x"}]})
    with pytest.raises(UserError, match=r"manifest\.json is damaged at 'shards\.0\.rows'"):
        ActivationStore.load(spoiled)
    (spoiled / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        ActivationStore.load(spoiled)


def test_everything_but_special_is_the_default():
    assert set(NON_SPECIAL) == set(Role) - {Role.SPECIAL}
