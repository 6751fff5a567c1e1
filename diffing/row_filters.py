"""Which rows of a store hold the positions that are averaged; shared by rankings and directions."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Int

from activations.prompts import Role
from activations.source import ActivationSource
from diffing.positions import POSITION_ROLES, PROMPT_END, Positions

RowIndex = Mapping[str, np.ndarray]
RowMask = Bool[np.ndarray, "rows"]


def rows_at(store: ActivationSource, positions: Positions) -> Callable[[RowIndex], RowMask]:
    """The row filter that keeps these positions of each prompt of `store`."""
    roles = [int(role) for role in POSITION_ROLES[positions]]
    if positions != "prompt_end":
        return lambda index: np.isin(index["role"], roles)
    last = _last_prompt_positions(store)

    def near_the_answer(index: RowIndex) -> RowMask:
        before = last[index["prompt"]] - index["position"]
        return np.isin(index["role"], roles) & (before >= 0) & (before < PROMPT_END)

    return near_the_answer


def _last_prompt_positions(store: ActivationSource) -> Int[np.ndarray, "prompt"]:
    """Position of each prompt's last token before the answer; -1 where it has none (plain text)."""
    last = np.full(len(store.prompt_ids), -1, dtype=np.int64)
    for number in range(store.shards):
        index = store.shard_index(number)
        at = index["role"] == Role.LAST_PROMPT
        last[index["prompt"][at]] = index["position"][at]
    return last
