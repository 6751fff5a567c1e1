"""Sets of latents that are steered as one vector, on parts that are known."""

from collections.abc import Sequence

import pandas as pd
import pytest
import torch
from tiny_models import axis_sae

from activations.errors import UserError
from diffing.steering.arms import Arm
from diffing.steering.latent_sets import Parts, random_sets

SHIFTS = {3: 2.0, 7: -4.0, 1: 1.0, 9: 0.5}


@pytest.fixture
def parts() -> Parts:
    """Latent i writes axis i, twice as long for latent 1."""
    sae = axis_sae()
    sae.W_dec.data[1] *= 8
    ranked = sorted(SHIFTS, key=lambda latent: -abs(SHIFTS[latent]))
    table = pd.DataFrame({"latent": ranked, "shift": [SHIFTS[i] for i in ranked], "rank": range(1, 5)})
    return Parts.of(sae, table, top=3)


def test_parts_are_shift_times_decoder_row_largest_first(parts: Parts):
    """Breaks if shifts alone decide the order, or if latents that fell point along their rows."""
    assert parts.latents == (1, 7, 3)
    assert parts.vectors[0, 1] == 8
    assert parts.vectors[1, 7] == -4
    assert parts.vectors.count_nonzero() == 3


def test_joint_sets_take_the_largest_parts(parts: Parts):
    assert parts.joint((1, 2, 9)) == {"joint 1": (0,), "joint 2": (0, 1)}
    unit = parts.arm((1, 2), "set").unit
    expected = torch.zeros(64)
    expected[7], expected[3] = -4 / 20**0.5, 2 / 20**0.5
    torch.testing.assert_close(unit, expected)


def test_greedy_sets_grow_by_the_best_partner_and_not_by_the_best_alone(parts: Parts):
    """7 is best alone; beside it 3 helps and 1 hurts, though 1 is the larger part and better alone than 3."""
    tried: list[int] = []

    def score(arms: Sequence[Arm]) -> list[float]:
        tried.append(len(arms))
        has = [{axis for axis in (1, 3, 7) if arm.unit[axis] != 0} for arm in arms]
        values = {(7,): 3.0, (1,): 2.0, (3,): 1.0, (3, 7): 4.0, (1, 7): 2.5, (1, 3, 7): 0.0}
        return [values[tuple(sorted(axes))] for axes in has]

    assert parts.greedy(5, score) == {"greedy 1": (1,), "greedy 2": (1, 2), "greedy 3": (1, 2, 0)}
    assert tried == [3, 2, 1]


def test_ties_go_to_the_larger_part(parts: Parts):
    assert parts.greedy(1, lambda arms: [1.0] * len(arms)) == {"greedy 1": (0,)}


def test_random_sets_are_made_of_other_latents_with_the_same_lengths(parts: Parts):
    arms = random_sets(axis_sae(), parts, 2, count=4, seed=0, exclude=dict.fromkeys(parts.latents))
    assert len(arms) == 4
    for arm in arms:
        assert arm.kind == "decoder_row"
        assert arm.unit.count_nonzero() == 2
        assert not arm.unit[[1, 3, 7]].any()
        torch.testing.assert_close(arm.unit.sort().values[-2:], torch.tensor([4.0, 8.0]) / 80**0.5)
    again = random_sets(axis_sae(), parts, 2, count=4, seed=0, exclude=dict.fromkeys(parts.latents))
    assert all(torch.equal(one.unit, other.unit) for one, other in zip(arms, again, strict=True))
    with pytest.raises(UserError, match="has 1 latents that are not steered"):
        random_sets(axis_sae(), parts, 2, count=1, seed=0, exclude=dict.fromkeys(range(63)))


def test_parts_that_cancel_are_refused():
    table = pd.DataFrame({"latent": [0, 1], "shift": [1.0, 1.0], "rank": [1, 2]})
    sae = axis_sae()
    sae.W_dec.data[1] = -sae.W_dec.data[0]
    with pytest.raises(UserError, match="cancel"):
        Parts.of(sae, table, top=2).arm((0, 1), "set")
