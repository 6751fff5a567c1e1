"""The valence axis, the map and the tree of traits: planted spaces and sums written out."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch import Tensor

from activations.errors import UserError
from diffing.geometry import unit_rows
from diffing.personality.valence import (
    resampled_directions,
    resampled_valence,
    semantic_valence,
    trait_map,
    trait_tree,
)

GOOD, BAD, NEITHER = ("kind", "honest", "calm"), ("evil", "cruel"), ("loud",)


def planted(d_model: int = 24, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Traits along and against one axis, with parts of their own and lengths that mean nothing; and the axis."""
    generator = torch.Generator().manual_seed(seed)
    axis = unit_rows(torch.randn(1, d_model, generator=generator))[0]
    sides = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0), **dict.fromkeys(NEITHER, 0.0)}
    vectors = {}
    for trait, side in sides.items():
        own = torch.randn(d_model, generator=generator, dtype=torch.float64)
        own -= (own @ axis) * axis
        vector = side * axis + 0.4 * own / own.norm()
        vectors[trait] = (vector * (1 + 9 * torch.rand(1, generator=generator))).float()
    return vectors, axis


def test_valence_of_directions_written_out() -> None:
    """Breaks if lengths of directions count, poles are summed instead of averaged, or the sign is turned."""
    directions = {
        "kind": torch.tensor([5.0, 0.0, 0.0]),
        "honest": torch.tensor([0.0, 0.1, 0.0]),
        "evil": torch.tensor([-2.0, 0.0, 0.0]),
        "loud": torch.tensor([0.0, 0.0, -3.0]),
    }
    found = semantic_valence(directions, ("kind", "honest"), ("evil",))
    assert found.vector.tolist() == [1.5, 0.5, 0.0]
    assert found.vector.dtype == torch.float32
    assert (found.prosocial, found.antisocial) == (("kind", "honest"), ("evil",))
    length = 2.5**0.5
    expected = {"kind": 1.5 / length, "honest": 0.5 / length, "evil": -1.5 / length, "loud": 0.0}
    assert found.cosines == pytest.approx(expected)


def test_the_first_component_is_the_planted_axis_and_points_to_the_prosocial_pole() -> None:
    """Breaks if the sign of the first component is left to the decomposition, or does not follow the given vector."""
    directions, axis = planted()
    valence = semantic_valence(directions, GOOD, BAD).vector
    found = trait_map(directions, valence)
    assert found.first.double() @ axis > 0.97
    assert found.first.norm().item() == pytest.approx(1)
    assert found.valence_cosine > 0.97
    assert found.explained[0] > 0.7 > 0.2 > found.explained[1]
    loadings = dict(zip(found.traits, found.loadings, strict=True))
    assert min(loadings[trait] for trait in GOOD) > 0.7 > 0.4 > abs(loadings["loud"])
    assert max(loadings[trait] for trait in BAD) < -0.7
    turned = trait_map(directions, -valence)
    torch.testing.assert_close(turned.first, -found.first)
    np.testing.assert_allclose(turned.loadings, -found.loadings)
    np.testing.assert_allclose(turned.coordinates[:, 0], -found.coordinates[:, 0])
    np.testing.assert_allclose(turned.coordinates[:, 1:], found.coordinates[:, 1:])


def test_the_map_keeps_the_distances_of_unit_directions() -> None:
    """Breaks if coordinates are scaled, components are lost, or shares are not of variances."""
    directions, _ = planted(seed=1)
    valence = semantic_valence(directions, GOOD, BAD).vector
    found = trait_map(directions, valence)
    units = unit_rows(torch.stack(list(directions.values()))).numpy()
    assert found.coordinates.shape == (6, 5)
    np.testing.assert_allclose(pdist(found.coordinates), pdist(units), rtol=1e-6)
    np.testing.assert_allclose(found.coordinates.mean(0), 0, atol=1e-12)
    variances = found.coordinates.var(0)
    np.testing.assert_allclose(found.explained, variances / units.var(0).sum(), rtol=1e-9)
    assert (np.diff(found.explained) <= 0).all()
    assert found.explained.sum() == pytest.approx(1)
    # Later components point the way of their largest coordinate, whatever the decomposition's sign.
    largest = np.abs(found.coordinates[:, 1:]).argmax(0)
    assert (found.coordinates[largest, np.arange(1, 5)] > 0).all()


def test_what_all_traits_share_is_a_component_only_without_centring() -> None:
    """Breaks if `centred` does nothing: the step that all personas make away from the assistant hides their valence."""
    directions, axis = planted(seed=2)
    shared = unit_rows(torch.randn(1, 24, generator=torch.Generator().manual_seed(9)))[0]
    shared = shared - (shared @ axis) * axis
    stepped = {trait: vector / vector.norm() + 4 * shared.float() for trait, vector in directions.items()}
    valence = semantic_valence(stepped, GOOD, BAD).vector
    first = trait_map(stepped, valence).first.double()
    assert first @ axis > 0.95
    whole = trait_map(stepped, valence, centred=False)
    assert abs(whole.first.double() @ shared / shared.norm()) > 0.95
    assert whole.coordinates.shape == (6, 6)
    units = unit_rows(torch.stack(list(stepped.values()))).numpy()
    np.testing.assert_allclose((whole.coordinates**2).sum(0) / (units**2).sum(), whole.explained, rtol=1e-9)


def questions(noise: float, count: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """The planted traits, question by question, with noise of their own [question d_model]."""
    generator, (directions, _) = np.random.default_rng(seed), planted()
    units = {trait: unit_rows(vector[None])[0].numpy() for trait, vector in directions.items()}
    return {trait: unit + noise * generator.normal(size=(count, len(unit))) for trait, unit in units.items()}


def mean_directions(differences: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {trait: torch.from_numpy(np.nanmean(rows, axis=0)) for trait, rows in differences.items()}


def test_a_replicate_is_the_mean_of_its_questions() -> None:
    """Breaks if questions without a difference count, rows are not drawn with the same weights, or seeds do nothing."""
    differences = {"kind": np.array([[2.0, 0.0], [0.0, 1.0], [np.nan, np.nan]]), "evil": np.array([[0.0, -3.0]] * 3)}
    found = resampled_directions(differences, 2000, seed=0)
    np.testing.assert_allclose(found[:, 1], np.tile([0.0, -1.0], (2000, 1)))
    # Of the first two questions a and b are drawn, and the direction is (2a, b) scaled to length 1.
    drawn = {(a, b) for a in range(4) for b in range(4 - a) if a + b}
    possible = {tuple(np.round(np.array([2 * a, b]) / np.hypot(2 * a, b), 6)) for a, b in drawn}
    lost = np.isnan(found[:, 0]).any(1)
    assert {tuple(row) for row in np.round(found[~lost, 0], 6)} == possible
    # All three draws are the question without a difference once in 27 times.
    assert lost.mean() == pytest.approx(1 / 27, abs=0.015)
    np.testing.assert_array_equal(found, resampled_directions(differences, 2000, seed=0))
    alone = resampled_directions({"kind": differences["kind"]}, 2000, seed=0)
    np.testing.assert_array_equal(alone[:, 0], found[:, 0])
    assert not np.array_equal(found, resampled_directions(differences, 2000, seed=1), equal_nan=True)


def test_every_replicate_has_the_valence_and_the_first_component_of_its_directions() -> None:
    """Breaks if poles, centring or signs are another's than in `semantic_valence` and `trait_map`."""
    differences = questions(noise=0.5)
    traits = list(differences)
    units = resampled_directions(differences, 4, seed=3)
    units[2, 1] = np.nan
    good, bad = ([traits.index(trait) for trait in pole] for pole in (GOOD, BAD))
    found = resampled_valence(units, good, bad)
    assert found.svv is not None
    assert np.isnan(found.svv[2]).all()
    assert np.isnan(found.first[2]).all()
    assert np.isnan(found.explained[2]).all()
    for i in (0, 1, 3):
        directions = dict(zip(traits, torch.from_numpy(units[i]), strict=True))
        vector = semantic_valence(directions, GOOD, BAD).vector
        one = trait_map(directions, vector)
        np.testing.assert_allclose(found.svv[i], unit_rows(vector[None])[0], atol=1e-6)
        np.testing.assert_allclose(found.first[i], one.first, atol=1e-6)
        np.testing.assert_allclose(found.explained[i, :5], one.explained, atol=1e-9)
    without = resampled_valence(units, good, [])
    assert without.svv is None
    assert ((without.first * units[:, 0]).sum(1)[[0, 1, 3]] >= 0).all()


def test_resampled_questions_tell_how_far_other_questions_would_lie() -> None:
    """Breaks if traits or replicates are drawn too little, or too much: spread of the draws, and of 60 new samples."""
    traits, noise = list(questions(0.0)), 1.0
    good, bad = ([traits.index(trait) for trait in pole] for pole in (GOOD, BAD))
    anew = [
        semantic_valence(mean_directions(questions(noise, seed=seed)), GOOD, BAD).cosines["loud"] for seed in range(60)
    ]
    units = resampled_directions(questions(noise), 400, seed=0)
    svv = resampled_valence(units, good, bad).svv
    assert svv is not None
    drawn = (units[:, traits.index("loud")] * svv).sum(1)
    assert drawn.std() == pytest.approx(np.std(anew), rel=0.3)


def test_the_tree_written_out() -> None:
    """Breaks if distances are not 1 - cosine, linkage is not the average, or leaves are in the order of the input."""
    angles = {"a": 0.0, "x": 2.5, "b": 0.4, "y": 2.7}
    directions = {name: 3 * torch.tensor([np.cos(angle), np.sin(angle)]) for name, angle in angles.items()}
    tree = trait_tree(directions)
    between = np.mean([1 - np.cos(angles[i] - angles[j]) for i in "ab" for j in "xy"])
    np.testing.assert_allclose(tree.merges[:, 2], [1 - np.cos(0.2), 1 - np.cos(0.4), between], rtol=1e-6)
    assert [set(merge) for merge in tree.merges[:2, :2].astype(int)] == [{1, 3}, {0, 2}]
    assert tree.traits == ("a", "x", "b", "y")
    assert "".join(tree.order) in ("abxy", "yxba")


@pytest.mark.parametrize(
    ("prosocial", "antisocial", "message"),
    [
        ((), ("evil",), "need at least one trait each"),
        (("kind", "evil"), ("evil",), "no trait twice"),
        (("kind", "fair"), ("evil",), "No direction for fair; there are: kind, evil, twin"),
        (("kind",), ("twin",), "same mean direction"),
    ],
)
def test_bad_poles(prosocial: tuple[str, ...], antisocial: tuple[str, ...], message: str) -> None:
    """Breaks if poles that are no poles give a vector."""
    directions = {"kind": torch.tensor([1.0, 2.0]), "evil": torch.tensor([-1.0, 0.0]), "twin": torch.tensor([2.0, 4.0])}
    with pytest.raises(UserError, match=message):
        semantic_valence(directions, prosocial, antisocial)


def test_bad_directions() -> None:
    """Breaks if a map or tree of nothing is drawn."""
    one, axis = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    with pytest.raises(UserError, match="at least 2 traits, here are 1"):
        trait_map({"kind": one}, axis)
    with pytest.raises(UserError, match="All traits have the same direction"):
        trait_map({"kind": one, "good": 3 * one}, axis)
    with pytest.raises(UserError, match="is zero or holds"):
        trait_map({"kind": one, "evil": -one}, torch.zeros(2))
    with pytest.raises(UserError, match="has 3 values, directions 2"):
        trait_map({"kind": one, "evil": -one}, torch.ones(3))
    with pytest.raises(UserError, match="number 1 of 2"):
        trait_tree({"kind": one, "none": torch.zeros(2)})
