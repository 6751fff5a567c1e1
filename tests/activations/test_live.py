"""Activations that are computed when they are read: the rows of a store, to the last bit, without one."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from test_harvest import CONFIG, HOOKS, make_batch

from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations, harvest
from activations.prompts import NON_SPECIAL, Role
from activations.shuffle import Shuffle
from activations.source import ActivationSource
from activations.store import ActivationStore

Pair = tuple[LiveActivations, ActivationStore]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def pair(request: pytest.FixtureRequest, base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same activations, computed and stored."""
    tokens, config = make_batch(base), CONFIG.model_copy(update={"dtype": request.param})
    store = harvest(base, tokens, config, tmp_path_factory.mktemp("live") / "store", progress=False)
    return LiveActivations(base, tokens, config), store


def require_equal(some: torch.Tensor, others: torch.Tensor) -> None:
    """To the last bit, and of the same type."""
    assert some.dtype == others.dtype
    assert torch.equal(some, others)


def test_says_of_itself_what_the_store_says(pair: Pair):
    """Breaks if results of live activations cannot be told to be those of the store."""
    live, store = pair
    assert live.config == {key: value for key, value in store.config.items() if key not in ("kind", "version")}
    assert live.same_prompts(store)
    assert (live.hooks, live.rows, live.shards) == (store.hooks, store.rows, store.shards)
    assert live.shards > 2
    assert [live.d_model(hook) for hook in HOOKS] == [store.d_model(hook) for hook in HOOKS]


@pytest.mark.parametrize("hook", HOOKS)
def test_shards_and_chunks_are_those_of_the_store(pair: Pair, hook: str):
    """Breaks if batching, rounding or the order of rows differs from the harvest's."""
    live, store = pair
    for number in range(store.shards):
        require_equal(live.shard(number, hook), store.shard(number, hook))
    for (rows, index), (stored, listed) in zip(live.chunks(hook), store.chunks(hook), strict=True):
        require_equal(rows, stored)
        assert index.keys() == listed.keys()
        for name, column in index.items():
            np.testing.assert_array_equal(column, listed[name], strict=True)


@pytest.mark.parametrize("roles", [None, NON_SPECIAL, (Role.LAST_PROMPT,), (Role.ANSWER,)])
def test_rows_of_roles_are_those_of_the_store(pair: Pair, roles: tuple[Role, ...] | None):
    """Breaks if a role means other rows in one of the two."""
    live, store = pair
    for number in range(store.shards):
        assert list(live.role_counts(number)) == list(store.role_counts(number))
    require_equal(live.read(HOOKS[1], roles), store.read(HOOKS[1], roles))


def test_index_is_that_of_the_store(pair: Pair):
    """Breaks if a row is traced to another token, prompt or position; types of columns count."""
    live, store = pair
    assert live.index().equals(store.index())


@pytest.mark.parametrize("start", [0, 5])
def test_shuffled_batches_are_those_of_the_store(pair: Pair, start: int):
    """Breaks if training on live activations is not the training on a store with the same seed."""
    batches = [
        list(islice(source.batches(HOOKS[0], 50, Shuffle(2, pool_rows=150), start=start), 30)) for source in pair
    ]
    for computed, stored in zip(*batches, strict=True):
        require_equal(computed, stored)


def test_only_the_hook_that_is_read_is_computed(base: Checkpoint):
    """Breaks if the model runs on past the hook that was asked for."""

    def never(activation: torch.Tensor) -> None:
        raise AssertionError("block 1 ran")

    live = LiveActivations(base, make_batch(base), CONFIG)
    with base.hooks({"blocks.1.hook_resid_pre": never}):
        live.shard(0, HOOKS[0])


def test_nothing_is_written(base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Breaks if live activations leave a file behind."""
    monkeypatch.chdir(tmp_path)
    live: ActivationSource = LiveActivations(base, make_batch(base), CONFIG)
    next(live.batches(HOOKS[0], 10, Shuffle(0)))
    assert not list(tmp_path.rglob("*"))


def test_hooks_are_checked_before_anything_is_computed(base: Checkpoint):
    """Breaks if a mistyped hook is noticed only when it is read."""
    tokens = make_batch(base)
    with pytest.raises(UserError, match=r"no hook 'blocks\.0\.resid_post'"):
        LiveActivations(base, tokens, HarvestConfig(hooks=("blocks.0.resid_post",)))
    with pytest.raises(UserError, match=r"instead of \(batch, pos, d_model\)"):
        LiveActivations(base, tokens, HarvestConfig(hooks=("blocks.0.attn.hook_pattern",)))
    with pytest.raises(UserError, match=r"the base model \S+ has no activations of blocks\.2"):
        LiveActivations(base, tokens, CONFIG).read("blocks.2.hook_resid_post")
