"""What a store gives back, what other programs read of it, and what it refuses."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from known_stores import CONFIG, HOOK, HOOKS, LENGTHS, ROWS, SHARDS, known_rows, known_shard, known_store

from activations.artefact import read_json, write_json
from activations.config import StoreDtype
from activations.errors import UserError
from activations.prompts import NON_SPECIAL, Role
from activations.shuffle import Shuffle
from activations.store import ActivationStore, StoreWriter
from activations.tokens import add_hashes

SHARD = "shard-00001.h5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return known_store(tmp_path_factory.mktemp("stores") / "whole").folder


@pytest.fixture
def spoiled(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "spoiled"))


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def reads(store: ActivationStore) -> list[Callable[[], object]]:
    """Every way to read a store."""
    return [
        store.verify,
        store.index,
        lambda: store.prompt_ids,
        lambda: store.read(HOOK),
        lambda: list(store.chunks(HOOK)),
        lambda: list(store.batches(HOOK, 8, Shuffle(0, epochs=1))),
    ]


class TestRows:
    def test_come_back_bit_equal_and_in_order(self, whole: Path):
        """Breaks if a row, or what the index says of it, is lost, changed or moved."""
        store = ActivationStore.load(whole)
        store.verify()
        assert store.hooks == tuple(HOOKS)
        assert (store.rows, store.shards, store.d_model("blocks.1.hook_resid_post")) == (ROWS, SHARDS, 4)
        assert store.prompt_ids == tuple(f"p{i}" for i in range(2 * SHARDS))
        assert store.tokens_hash == add_hashes(known_shard(i).batch.hash for i in range(SHARDS))
        index = store.index()
        for name in ("token", "prompt", "position", "role"):
            wanted = np.concatenate([known_shard(i).index[name] for i in range(SHARDS)])
            np.testing.assert_array_equal(index[name], wanted)
        for hook in HOOKS:
            assert torch.equal(store.read(hook, roles=None), known_rows(hook))

    def test_a_store_shows_itself_without_reading_its_shards(self, whole: Path, monkeypatch: pytest.MonkeyPatch):
        """Breaks if a notebook shows another number of rows, or reads terabytes to show it."""
        store = ActivationStore.load(whole)
        monkeypatch.setattr(ActivationStore, "_verify", lambda *_: pytest.fail("a shard was read"))
        page = store._repr_html_()
        assert f"<td>rows</td><td>{ROWS:,}</td>" in page
        assert "blocks.0.hook_resid_post (6)" in page

    def test_chunks_carry_their_own_rows_of_the_index(self, whole: Path):
        """Breaks if activations and index of a chunk come from different places."""
        store = ActivationStore.load(whole)
        start, index = 0, store.index()
        for rows, part in store.chunks(HOOK):
            assert torch.equal(rows, known_rows()[start : start + len(rows)])
            for name, column in part.items():
                np.testing.assert_array_equal(column, index[name][start : start + len(rows)])
            start += len(rows)
        assert start == store.rows

    def test_are_chosen_by_role(self, whole: Path):
        """Breaks if a role's rows are counted or picked wrongly, or special ones are read unasked."""
        store = ActivationStore.load(whole)
        ends = [i * sum(LENGTHS) + end - 1 for i in range(SHARDS) for end in (LENGTHS[0], sum(LENGTHS))]
        assert torch.equal(store.read(HOOK, {Role.LAST_PROMPT}), known_rows()[ends])
        assert len(store.read(HOOK)) == store.rows - 2 * SHARDS
        assert store.read(HOOK, {Role.ANSWER}).shape == (0, 6)
        by_role = [2, sum(LENGTHS) - 4, 2, 0]  # special, prompt, last prompt token, answer
        assert [list(store.role_counts(number)) for number in range(SHARDS)] == [by_role] * SHARDS

    def test_everything_but_special_is_the_default(self):
        """Breaks if a new role is left out of what is read by default."""
        assert set(NON_SPECIAL) == set(Role) - {Role.SPECIAL}

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_of_half_precision_are_exact(self, tmp_path: Path, dtype: StoreDtype):
        """Breaks if the stored bits differ from torch's own conversion, or the file does not say what they are."""
        store = known_store(tmp_path / "half", dtype=dtype)
        assert torch.equal(store.read(HOOK, None), known_rows().to(getattr(torch, dtype)).float())
        with h5py.File(tmp_path / "half" / SHARD) as file:
            stored = dataset(file, f"activations/{HOOK}")
            assert str(stored.dtype) == {"bfloat16": "uint16", "float16": "float16"}[dtype]
            if dtype == "bfloat16":
                assert stored.attrs["dtype"] == "bfloat16"
                decoded = np.left_shift(stored[:], 16, dtype=np.uint32).view(np.float32)
                np.testing.assert_array_equal(decoded, store.shard(1, HOOK).float().numpy())

    def test_of_a_shard_larger_than_a_chunk(self, tmp_path: Path):
        """Breaks if the padding of a shard's last chunk is read, or chunks are put together in another order."""
        rows = torch.arange(9000.0)[:, None].expand(-1, 3)
        column = np.zeros(9000)
        index = {"token": column, "prompt": column, "position": np.arange(9000), "role": column + 1}
        with StoreWriter(tmp_path / "s", {"h": 3}, "float32", CONFIG) as writer:
            writer.write(0, {"h": rows}, index, {0: "p"}, "0")
            assert writer.close(1, add_hashes(["0"]))
        store = ActivationStore.load(tmp_path / "s")
        assert [len(part) for part, _ in store.chunks("h")] == [4096, 4096, 808]
        assert torch.equal(store.read("h"), rows)


def test_plain_h5py_traces_every_row_to_prompt_token_and_position(whole: Path):
    """Breaks if a shard alone, read by someone without this code, does not tell where its rows come from."""
    known = known_shard(1)
    place = {prompt: (batch, 0) for batch, prompt in enumerate(known.prompts)}
    with h5py.File(whole / SHARD) as file:
        assert sorted(file) == ["activations", "position", "prompt", "prompts", "role", "token"]
        ids = dict(
            zip(dataset(file, "prompts/number")[:].tolist(), dataset(file, "prompts/id").asstr()[:], strict=True)
        )
        assert ids == known.prompts
        columns = [dataset(file, name) for name in ("token", "prompt", "position", "role")]
        assert [str(column.dtype) for column in columns] == ["int32", "int32", "int32", "uint8"]
        rows = dataset(file, f"activations/{HOOK}")
        assert (rows.dtype, rows.shape, rows.chunks) == (np.float32, (700, 6), (700, 6))
        for row, (token, prompt, position, role) in enumerate(zip(*columns, strict=True)):
            source = place[int(prompt)][0]
            assert token == known.batch.tokens[source][position]
            assert role == known.batch.roles[source][position]
            assert row == position + sum(LENGTHS[:source])
        np.testing.assert_array_equal(rows[:], known.activations[HOOK].numpy())


def test_unknown_hook_lists_what_there_is(whole: Path):
    """Breaks if a mistyped hook ends in a KeyError of h5py."""
    store = ActivationStore.load(whole)
    for ask in (
        store.d_model,
        store.read,
        lambda hook: next(store.chunks(hook)),
        lambda hook: next(store.batches(hook, 8, Shuffle(0))),
    ):
        with pytest.raises(
            UserError, match=r"no activations of blocks\.7.*only of blocks\.0\.hook_resid_post, blocks\.1"
        ):
            ask("blocks.7.hook_resid_post")


class TestWriter:
    def test_refuses_folders_that_hold_something_else(self, whole: Path, tmp_path: Path):
        """Breaks if a finished store, or someone's own files, can be written over."""
        with pytest.raises(UserError, match="finished artefact; choose another folder or --overwrite"):
            StoreWriter(whole, HOOKS, "float32", CONFIG)
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "thesis.txt").write_text("words")
        with pytest.raises(UserError, match=r"in use: it holds thesis\.txt"):
            StoreWriter(tmp_path / "notes", HOOKS, "float32", CONFIG)

    @pytest.mark.parametrize("ranks", [1, 3])
    def test_goes_on_with_the_same_activations_only(self, tmp_path: Path, ranks: int):
        """Breaks if shards of another model, format or setting can be mixed into a begun store."""
        StoreWriter(tmp_path / "begun", HOOKS, "float32", CONFIG, 0, ranks).release()
        others: list[tuple[Mapping[str, int], StoreDtype, dict[str, Any]]] = [
            ({HOOK: 6}, "float32", CONFIG),
            (HOOKS, "float16", CONFIG),
            (HOOKS, "float32", {**CONFIG, "seed": 1}),
        ]
        for hooks, dtype, config in others:
            with pytest.raises(UserError, match="holds other activations"):
                StoreWriter(tmp_path / "begun", hooks, dtype, config)
        # The folder of checkpoints was moved meanwhile: only the display name differs.
        StoreWriter(tmp_path / "begun", HOOKS, "float32", {**CONFIG, "model": "moved"}).release()

    def test_refuses_other_tokens_in_a_finished_shard(self, tmp_path: Path):
        """Breaks if a harvest of other prompts takes over shards of an earlier one."""
        with StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG) as writer:
            known_shard(0).write(writer)
        with StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG) as writer:
            assert writer.holds(0, known_shard(0).batch.hash)
            assert not writer.holds(1, known_shard(1).batch.hash)
            with pytest.raises(UserError, match="holds activations of other tokens"):
                writer.holds(0, known_shard(1).batch.hash)

    def test_checks_shapes(self, tmp_path: Path):
        """Breaks if rows and index of different lengths get into a shard."""
        known = known_shard(0)
        short = {**known.activations, HOOK: known.activations[HOOK][:5]}
        with (
            StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG) as writer,
            pytest.raises(ValueError, match=r"\(700, 6\)"),
        ):
            writer.write(0, short, known.index, known.prompts, known.batch.hash)


def relist(folder: Path, name: str) -> None:
    """Makes the manifest agree with a shard's size, so that its content is what has to be noticed."""
    manifest = read_json(folder / "manifest.json")
    for shard in manifest["shards"]:
        if shard["file"] == name:
            shard["bytes"] = (folder / name).stat().st_size
    write_json(folder / "manifest.json", manifest)


def flip(path: Path, place: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


class TestDamage:
    def test_truncated_shard(self, spoiled: Path):
        """Breaks if half a shard is opened."""
        path = spoiled / SHARD
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(
            UserError, match=r"shard-00001\.h5 has \d+ bytes, the manifest says \d+; delete .*harvest again"
        ):
            ActivationStore.load(spoiled)

    def test_missing_shard(self, spoiled: Path):
        """Breaks if a store is read without one of its shards."""
        (spoiled / SHARD).unlink()
        with pytest.raises(UserError, match=r"shard-00001\.h5 is missing"):
            ActivationStore.load(spoiled)

    def test_foreign_file_in_the_place_of_a_shard(self, spoiled: Path):
        """Breaks if what is no shard ends in an error of HDF5."""
        (spoiled / SHARD).write_bytes(b"not HDF5 at all" * 100)
        relist(spoiled, SHARD)
        with pytest.raises(UserError, match=r"shard-00001\.h5 is not a shard of activations"):
            ActivationStore.load(spoiled)
        with h5py.File(spoiled / SHARD, "w") as file:
            file["images"] = np.zeros(10)
        relist(spoiled, SHARD)
        with pytest.raises(UserError, match=r"shard-00001\.h5 is not a shard of activations"):
            ActivationStore.load(spoiled)

    def test_shard_of_another_layout(self, spoiled: Path):
        """Breaks if a shard with other numbers of rows than listed is read."""
        with h5py.File(spoiled / SHARD, "r+") as file:
            for name in ("token", "prompt", "position", "role"):
                column = dataset(file, name)[:-1]
                del file[name]
                file[name] = column
        relist(spoiled, SHARD)
        with pytest.raises(UserError, match=r"shard-00001\.h5 is not laid out as the manifest says"):
            ActivationStore.load(spoiled)

    def test_flipped_bit_in_activations(self, spoiled: Path):
        """Breaks if any way to read a store gives rows that differ from those that were written."""
        with h5py.File(spoiled / SHARD) as file:
            offset = dataset(file, f"activations/{HOOK}").id.get_chunk_info(0).byte_offset
        flip(spoiled / SHARD, offset + 1000)
        for number in range(len(reads(ActivationStore.load(spoiled)))):
            with pytest.raises(UserError, match=r"shard-00001\.h5 is damaged: its checksum is"):
                reads(ActivationStore.load(spoiled))[number]()

    def test_flipped_bit_in_a_prompts_id(self, spoiled: Path):
        """Breaks if rows can be traced to a prompt that does not exist."""
        flip(spoiled / SHARD, (spoiled / SHARD).read_bytes().index(b"p3"))
        with pytest.raises(UserError, match=r"shard-00001\.h5 is damaged: its checksum is"):
            _ = ActivationStore.load(spoiled).prompt_ids

    def test_manifest_of_an_older_version(self, spoiled: Path):
        """Breaks if a store in the layout of version 1 is read as one of today's, or its user sees a traceback."""
        manifest = read_json(spoiled / "manifest.json")
        kept = ("rows", "bytes", "checksum")
        shards = [{"name": s["file"], **{key: s[key] for key in kept}, "batches": 1} for s in manifest["shards"]]
        config = {**CONFIG, "prompt_ids": ["p0", "p1"], "tokens_hash": "abc"}
        old = {"version": 1, "hooks": HOOKS, "dtype": "float32", "config": config, "shards": shards}
        write_json(spoiled / "manifest.json", old)
        with pytest.raises(UserError, match=r"manifest\.json has version 1, this code reads version 2; harvest again"):
            ActivationStore.load(spoiled)
        (spoiled / "config.json").unlink()
        with pytest.raises(UserError, match=r"has version 1"):
            StoreWriter(spoiled, HOOKS, "float32", CONFIG)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"version": 2, "shards": [{"file": "x"}]}, r"is damaged at 'hooks'"),
            ({"version": 99}, r"has version 99, this code reads version 2"),
            ([], r"has version None"),
            (None, r"manifest\.json is missing"),
        ],
    )
    def test_manifest_that_is_damaged_or_missing(self, spoiled: Path, content: Any, message: str):
        """Breaks if a store is opened by guessing what its manifest said."""
        if content is None:
            (spoiled / "manifest.json").unlink()
        else:
            write_json(spoiled / "manifest.json", content)
        with pytest.raises(UserError, match=message):
            ActivationStore.load(spoiled)

    def test_damaged_manifest_of_a_writer(self, tmp_path: Path):
        """Breaks if a writer goes on from a manifest that it cannot read."""
        StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG).release()
        (tmp_path / "s" / "manifest.0-of-1.json").write_text("{")
        with pytest.raises(UserError, match=r"manifest\.0-of-1\.json is not valid JSON"):
            StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG)
        # The lock was freed nevertheless.
        with pytest.raises(UserError, match="is not valid JSON"):
            StoreWriter(tmp_path / "s", HOOKS, "float32", CONFIG)
