"""Shuffled reading: every row once an epoch, the same batches for the same seed, and resuming anywhere."""

import gc
import multiprocessing
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from known_stores import CONFIG, HOOK, HOOKS, LENGTHS, SHARDS, known_store
from torch import Tensor

from activations.errors import UserError
from activations.prompts import Role
from activations.shuffle import Shuffle
from activations.store import ActivationStore, StoreWriter, reader
from activations.tokens import add_hashes

SHARD_ROWS = sum(LENGTHS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return known_store(tmp_path_factory.mktemp("stores") / "whole")


@pytest.fixture(params=["read here", "read ahead by a worker"])
def either(request: pytest.FixtureRequest, store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> ActivationStore:
    """The store, read in both ways that there are."""
    if request.param == "read ahead by a worker":
        monkeypatch.setattr(reader, "READ_AHEAD_BYTES", 0)
    return store


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def first_column(rows: Tensor) -> list[float]:
    """What tells rows apart."""
    return rows[:, 0].tolist()


def test_every_row_once_an_epoch(either: ActivationStore):
    """Breaks if a row is skipped or drawn twice, or an epoch begins before the last one ended."""
    expected = sorted(first_column(either.read(HOOK)))
    batches = list(either.batches(HOOK, 512, Shuffle(0, epochs=2, pool_rows=2000)))
    assert {len(rows) for rows in batches[:-1]} == {512}
    drawn = first_column(torch.cat(batches))
    assert sorted(drawn[: len(expected)]) == sorted(drawn[len(expected) :]) == expected


@pytest.mark.parametrize("roles", [None, (Role.LAST_PROMPT,), (Role.SPECIAL, Role.LAST_PROMPT)])
def test_rows_of_the_wanted_roles_only(store: ActivationStore, roles: tuple[Role, ...] | None):
    """Breaks if the sizes that the order is made from are not those of the rows that are drawn."""
    batches = list(store.batches(HOOK, 7, Shuffle(0, epochs=1, roles=roles, pool_rows=1)))
    assert sorted(first_column(torch.cat(batches))) == sorted(first_column(store.read(HOOK, roles)))


def test_seeds_and_epochs_give_orders_of_their_own(store: ActivationStore):
    """Breaks if equal seeds differ, other seeds do not, or every epoch has the same order."""
    size = len(store.read(HOOK))
    one, again, other = (list(store.batches(HOOK, size, Shuffle(seed, epochs=2, pool_rows=1000))) for seed in (3, 3, 4))
    assert equal(one, again)
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])


def test_rows_are_mixed_over_shards(store: ActivationStore):
    """Breaks if a pool that holds all shards gives them one after another."""
    place = {value: row for row, value in enumerate(first_column(store.read(HOOK)))}
    first = next(store.batches(HOOK, 1024, Shuffle(3)))
    rows = np.array([place[value] for value in first_column(first)])
    shares = np.histogram(rows, bins=SHARDS, range=(0, len(place)))[0] / len(rows)
    assert (abs(shares - 1 / SHARDS) < 0.04).all()


def test_a_pool_has_as_many_shards_as_it_needs(store: ActivationStore):
    """Breaks if less is mixed than was asked for, or more is held in memory."""
    place = {value: row // SHARD_ROWS for row, value in enumerate(first_column(store.read(HOOK, None)))}
    batches = store.batches(HOOK, SHARD_ROWS, Shuffle(0, epochs=1, roles=None, pool_rows=SHARD_ROWS + 1))
    pools = [{place[value] for value in first_column(torch.cat(pair))} for pair in zip(batches, batches, strict=True)]
    assert [len(pool) for pool in pools] == [2] * (SHARDS // 2)
    assert set.union(*pools) == set(range(SHARDS))


def test_batches_do_not_end(store: ActivationStore):
    """Breaks if training can run out of batches."""
    endless = store.batches(HOOK, 1000, Shuffle(0, pool_rows=1500))
    assert all(len(next(endless)) == 1000 for _ in range(30))


@pytest.mark.parametrize("pool_rows", [1, 1500, 10**6])
@pytest.mark.parametrize("batch_size", [64, 700, 6000])
def test_start_leaves_out_what_was_read_already(store: ActivationStore, batch_size: int, pool_rows: int):
    """Breaks if a resumed training sees other batches than one that was never stopped; epochs end within batches."""
    shuffle = Shuffle(5, epochs=3, pool_rows=pool_rows)
    batches = list(store.batches(HOOK, batch_size, shuffle))
    rows = len(store.read(HOOK))
    for start in (0, 1, 2, rows // batch_size, rows // batch_size + 1, 2 * rows // batch_size, len(batches) - 1):
        resumed = islice(store.batches(HOOK, batch_size, shuffle, start=start), 4)
        assert equal(list(resumed), batches[start : start + 4]), start
    assert list(store.batches(HOOK, batch_size, shuffle, start=len(batches))) == []


def test_start_reads_nothing_of_what_it_leaves_out(store: ActivationStore, monkeypatch: pytest.MonkeyPatch):
    """Breaks if resuming late in a long training reads the store from the beginning."""
    seen: list[int] = []
    shard = ActivationStore.shard
    monkeypatch.setattr(ActivationStore, "shard", lambda *a: (seen.append(a[1]), shard(*a))[1])
    next(store.batches(HOOK, 10, Shuffle(0, pool_rows=1), start=10**6))
    assert len(seen) == 1


def test_a_worker_gives_the_same_batches(store: ActivationStore, monkeypatch: pytest.MonkeyPatch):
    """Breaks if the order of a store depends on its size."""
    shuffle = Shuffle(1, epochs=2, pool_rows=1500)
    here = list(store.batches(HOOK, 300, shuffle))
    monkeypatch.setattr(reader, "READ_AHEAD_BYTES", 0)
    assert equal(list(store.batches(HOOK, 300, shuffle)), here)
    assert equal(list(store.batches(HOOK, 300, shuffle, start=5)), here[5:])
    assert not multiprocessing.active_children()


def test_an_abandoned_iterator_leaves_no_process_behind(store: ActivationStore, monkeypatch: pytest.MonkeyPatch):
    """Breaks if training that stops early keeps a reader, and its share of memory, alive."""
    monkeypatch.setattr(reader, "READ_AHEAD_BYTES", 0)
    batches: Iterator[Tensor] = store.batches(HOOK, 100, Shuffle(0, pool_rows=700))
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    del batches
    gc.collect()
    assert not multiprocessing.active_children()


def test_reading_draws_nothing_from_torchs_own_generator(either: ActivationStore):
    """Breaks if what is drawn elsewhere depends on how a store is read."""
    before = torch.get_rng_state()
    next(either.batches(HOOK, 100, Shuffle(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_damage_is_told_in_one_sentence_however_it_is_read(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Breaks if the worker of a large store reads damaged rows, or tells of them in a traceback."""
    monkeypatch.setattr(reader, "READ_AHEAD_BYTES", 0)
    folder = Path(shutil.copytree(store.folder, tmp_path / "damaged"))
    with (folder / "shard-00005.h5").open("r+b") as file:
        file.seek(20_000)
        file.write(b"something else")
    with pytest.raises(UserError, match=r"^\S+shard-00005\.h5 is damaged: [^\n]+$"):
        list(ActivationStore.load(folder).batches(HOOK, 8, Shuffle(0, epochs=1)))


@pytest.mark.parametrize("roles", [(Role.ANSWER,), ()])
def test_no_rows_of_the_wanted_roles(store: ActivationStore, roles: tuple[Role, ...]):
    """Breaks if training on roles that the store lacks waits for ever."""
    with pytest.raises(UserError, match="no rows of the wanted roles"):
        next(store.batches(HOOK, 8, Shuffle(0, roles=roles)))


def test_shards_without_rows_of_the_role(tmp_path: Path):
    """Breaks if a shard that has nothing to give, at the end of an epoch too, ends the reading."""
    roles = [Role.PROMPT, Role.SPECIAL, Role.PROMPT, Role.SPECIAL]
    column = np.arange(10)
    with StoreWriter(tmp_path / "s", {"h": 1}, "float32", CONFIG) as writer:
        for number, role in enumerate(roles):
            rows = torch.arange(10.0)[:, None] + 10 * number
            index = {"token": column, "prompt": column * 0 + number, "position": column, "role": column * 0 + role}
            writer.write(number, {"h": rows}, index, {number: f"p{number}"}, f"{number:x}")
        assert writer.close(len(roles), add_hashes(f"{number:x}" for number in range(len(roles))))
    store = ActivationStore.load(tmp_path / "s")
    for seed in range(4):
        batches = list(store.batches("h", 7, Shuffle(seed, epochs=2, pool_rows=1)))
        assert [len(rows) for rows in batches] == [7, 7, 7, 7, 7, 5]
        assert sorted(first_column(torch.cat(batches))[:20]) == [*range(10), *range(20, 30)]
        resumed = list(store.batches("h", 7, Shuffle(seed, epochs=2, pool_rows=1), start=3))
        assert equal(resumed, batches[3:])


def test_the_stores_hooks_share_one_order(store: ActivationStore):
    """Breaks if batches of two hooks cannot be paired row by row."""
    one, other = HOOKS
    wide, narrow = store.read(one), store.read(other)
    place = {value: row for row, value in enumerate(first_column(wide))}
    for a, b in zip(
        store.batches(one, 999, Shuffle(0, epochs=1)), store.batches(other, 999, Shuffle(0, epochs=1)), strict=True
    ):
        rows = [place[value] for value in first_column(a)]
        assert torch.equal(narrow[rows], b)
