"""Stores that are joined without copying: shares of one harvest, and stores of different prompts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from known_stores import (
    CONFIG,
    HOOK,
    HOOKS,
    LENGTHS,
    SHARDS,
    contents,
    known_hash,
    known_rows,
    known_shard,
    known_store,
    write,
)

from activations.artefact import content_hash
from activations.errors import UserError
from activations.shuffle import Shuffle
from activations.store import ActivationStore, StoreWriter, merge_stores
from activations.tokens import add_hashes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return known_store(tmp_path_factory.mktemp("stores") / "whole")


def require_equal(one: ActivationStore, other: ActivationStore) -> None:
    """Nothing that is read from the stores differs."""
    assert one.config == other.config
    assert one.prompt_ids == other.prompt_ids
    assert one.index().equals(other.index())
    for hook in HOOKS:
        assert torch.equal(one.read(hook, None), other.read(hook, None))
    some, others = (list(store.batches(HOOK, 1000, Shuffle(0, epochs=1, pool_rows=1500))) for store in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("places", [("a", "b"), ("b", "a"), ("a", "b", "a")])
def test_shares_of_one_harvest_are_the_single_store(whole: ActivationStore, tmp_path: Path, places: tuple[str, ...]):
    """Breaks if shares from several machines are put together in another order than that of the rows."""
    for rank, place in enumerate(places):
        assert not write(tmp_path / place, rank=rank, ranks=len(places))
    merged = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    merged.verify()
    require_equal(merged, whole)
    assert merged.tokens_hash == whole.tokens_hash


def test_finished_store_and_shares_of_the_same_harvest(whole: ActivationStore, tmp_path: Path):
    """Breaks if shards that two machines have both written are read twice."""
    assert not write(tmp_path / "share", rank=1, ranks=2)
    require_equal(merge_stores([whole.folder, tmp_path / "share"], tmp_path / "out"), whole)


def test_stores_of_different_prompts_come_one_after_another(whole: ActivationStore, tmp_path: Path):
    """Breaks if a row of the second store is traced to a prompt of the first."""
    other = known_store(tmp_path / "other", 3, prefix="q")
    merged = merge_stores([whole.folder, other.folder], tmp_path / "out")
    merged.verify()
    assert merged.prompt_ids == (*whole.prompt_ids, *other.prompt_ids)
    assert torch.equal(merged.read(HOOK, None), torch.cat([known_rows(), known_rows(shards=3, prefix="q")]))
    assert merged.rows == whole.rows + other.rows
    assert merged.tokens_hash == add_hashes([whole.tokens_hash, other.tokens_hash])
    one, two, both = whole.index(), other.index(), merged.index()
    for name in ("token", "position", "role"):
        np.testing.assert_array_equal(both[name], np.concatenate([one[name], two[name]]))
    np.testing.assert_array_equal(both["prompt"], np.concatenate([one["prompt"], two["prompt"] + 2 * SHARDS]))


def test_merged_stores_can_be_merged(tmp_path: Path):
    """Breaks if paths and prompt numbers of a merged store are not carried over to the next."""
    stores = [known_store(tmp_path / prefix, 2, prefix=prefix) for prefix in "pqr"]
    pair = merge_stores([stores[0].folder, stores[1].folder], tmp_path / "deep" / "pair")
    merged = merge_stores([pair.folder, stores[2].folder], tmp_path / "all")
    assert merged.prompt_ids == tuple(f"{prefix}{i}" for prefix in "pqr" for i in range(4))
    assert torch.equal(merged.read(HOOK, None), torch.cat([known_rows(shards=2, prefix=prefix) for prefix in "pqr"]))
    ids = np.array(merged.prompt_ids)[merged.index()["prompt"]]
    known = [known_shard(number, prefix) for prefix in "pqr" for number in range(2)]
    wanted = np.concatenate([np.repeat(list(shard.prompts.values()), LENGTHS) for shard in known])
    assert ids.tolist() == wanted.tolist()


def test_not_a_byte_of_activations_is_copied_or_changed(whole: ActivationStore, tmp_path: Path):
    """Breaks if joining terabytes takes terabytes, or touches its parts."""
    other = known_store(tmp_path / "other", prefix="q")
    before = contents(whole.folder), contents(other.folder)
    merged = merge_stores([whole.folder, other.folder], tmp_path / "out")
    assert (contents(whole.folder), contents(other.folder)) == before
    assert sorted(path.name for path in merged.folder.iterdir()) == ["config.json", "manifest.json", "provenance.json"]
    assert sum(map(len, contents(merged.folder).values())) < 0.05 * merged.bytes


def test_parts_and_whole_can_be_moved_together(tmp_path: Path):
    """Breaks if a merged store remembers where its parts once were."""
    parts = [known_store(tmp_path / "here" / prefix, 2, prefix=prefix).folder for prefix in "pq"]
    merged = merge_stores(parts, tmp_path / "here" / "out")
    rows, name = merged.read(HOOK), content_hash(merged.folder)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = ActivationStore.load(tmp_path / "there" / "out")
    assert torch.equal(moved.read(HOOK), rows)
    assert content_hash(moved.folder) == name
    (tmp_path / "there" / "q" / "shard-00001.h5").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.h5 is missing"):
        ActivationStore.load(tmp_path / "there" / "out")


def test_a_finished_store_is_replaced_only_when_asked(whole: ActivationStore, tmp_path: Path):
    """Breaks if a merge writes over a store, or refuses to when it should."""
    other = known_store(tmp_path / "other", 2, prefix="q")
    merged = merge_stores([whole.folder], tmp_path / "out")
    with pytest.raises(UserError, match="holds a finished artefact"):
        merge_stores([other.folder], tmp_path / "out")
    require_equal(ActivationStore.load(merged.folder), whole)
    require_equal(merge_stores([other.folder], tmp_path / "out", overwrite=True), other)


def narrow(folder: Path) -> None:
    """A store of one hook only."""
    with StoreWriter(folder, {HOOK: HOOKS[HOOK]}, "float32", CONFIG) as writer:
        known_shard(0, "q").write(writer)
        writer.close(1, known_hash(1, "q"))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (lambda out: known_store(out, prefix="q", checkpoint="other"), "of another model, hook or format"),
    "another precision": (
        lambda out: known_store(out, prefix="q", model_dtype="bfloat16"),
        "of another model, hook or format",
    ),
    "another dtype": (lambda out: known_store(out, prefix="q", dtype="float16"), "of another model, hook or format"),
    "another hook": (narrow, "of another model, hook or format"),
    "the same prompts": (lambda out: known_store(out, 1), "holds prompt 'p0', which is in another store too"),
    "a share of another harvest": (
        lambda out: write(out, rank=0, ranks=2, config={**CONFIG, "shard_rows": 1}),
        "are not shares of one harvest",
    ),
    "nothing": (lambda out: out.mkdir(), "holds no activations"),
    "no folder": (lambda out: None, "does not exist"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_joined_is_refused(whole: ActivationStore, tmp_path: Path, kind: str):
    """Breaks if rows that must not be compared end up in one store, or a folder is made for nothing."""
    make, message = REFUSED[kind]
    make(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        merge_stores([whole.folder, tmp_path / "other"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_shares_are_counted(tmp_path: Path):
    """Breaks if a store lacks the rows of a machine that has not finished."""
    assert not write(tmp_path / "a", rank=0, ranks=3)
    assert not write(tmp_path / "b", rank=2, ranks=3)
    with pytest.raises(UserError, match="Only 5 of 8 shards are there; let all ranks finish"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with StoreWriter(tmp_path / "begun", HOOKS, "float32", CONFIG) as writer:
        known_shard(0).write(writer)
    with pytest.raises(UserError, match="Only 1 of an unknown number shards"):
        merge_stores([tmp_path / "begun"], tmp_path / "out")


def test_no_stores(tmp_path: Path):
    """Breaks if an empty list makes an empty store."""
    with pytest.raises(UserError, match="There are no stores to merge"):
        merge_stores([], tmp_path / "out")
