"""Spaces of directions: rotated, unrelated and planted ones, formulas written out, and calibrated p values."""

from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from jaxtyping import Float64
from torch import Tensor

from activations.errors import UserError
from diffing.personality.similarity import (
    beside_nulls,
    linear_cka,
    principal_angles,
    procrustes,
    projection_share,
    rsa,
    rsa_with_matrix,
    similarity_nulls,
    space_similarity,
)
from diffing.personality.spaces import orthonormal_basis, trait_matrix


def random_rows(rows: int, d_model: int, seed: int) -> Float64[Tensor, "rows d_model"]:
    return torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d_model: int, seed: int = 0) -> Float64[Tensor, "d_model d_model"]:
    return torch.linalg.qr(random_rows(d_model, d_model, seed))[0]


def traits_with(correlations: np.ndarray, d_model: int, noise: float, seed: int) -> Tensor:
    """Directions whose cosines are those correlations, up to noise."""
    axes = rotation(d_model, seed)[: len(correlations)]
    rows = torch.from_numpy(np.linalg.cholesky(correlations)) @ axes
    return rows + noise / d_model**0.5 * random_rows(len(correlations), d_model, seed + 1)


def unit(rows: Tensor) -> np.ndarray:
    return (rows / rows.norm(dim=1, keepdim=True)).numpy()


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def correlations(traits: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(traits, 4))
    matrix = rows @ rows.T + np.eye(traits)
    scale = np.sqrt(np.diag(matrix))
    return matrix / np.outer(scale, scale)


def test_a_rotated_space_is_the_same_space() -> None:
    """Breaks if a measure sees the lengths of directions, or (but for the plain cosines) where the space points."""
    a = random_rows(8, 20, 0)
    b = (a * torch.linspace(0.1, 9, 8, dtype=torch.float64)[:, None]) @ rotation(20)
    found = rsa(a, b, permutations=999, replicates=50)
    assert (found.correlation, found.low, found.high) == pytest.approx((1, 1, 1))
    assert (found.p, found.traits) == (1 / 1000, 8)
    cka, turned = linear_cka(a, b), procrustes(a, b)
    assert (cka.biased, cka.unbiased) == pytest.approx((1, 1))
    assert turned.residual == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(turned.aligned, 1)
    assert np.abs(turned.cosines).max() < 0.8
    wider = torch.cat([b, torch.zeros(8, 5, dtype=torch.float64)], 1)
    assert rsa(a, wider, permutations=1, replicates=1).correlation == pytest.approx(1)
    assert linear_cka(a, wider).unbiased == pytest.approx(1)


@pytest.mark.parametrize(("traits", "d_model"), [(6, 30), (9, 5)])
def test_measures_equal_their_formulas(traits: int, d_model: int) -> None:
    """Breaks if a shortcut (Gram matrices, spans, U-centring) is not the published formula."""
    a, b = random_rows(traits, d_model, 1), random_rows(traits, d_model, 2) + random_rows(traits, d_model, 1)
    x, y, n = unit(a), unit(b), traits
    assert rsa(a, b, 1, 1).correlation == pytest.approx(scipy.stats.spearmanr(upper(x @ x.T), upper(y @ y.T))[0])
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    norms = [np.linalg.norm(m.T @ m) for m in (centred_x, centred_y)]
    cka = linear_cka(a, b)
    assert cka.biased == pytest.approx(np.linalg.norm(centred_y.T @ centred_x) ** 2 / np.prod(norms))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:  # Song et al. 2012, equation 5
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return float((np.trace(k @ m) + sums) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    assert cka.unbiased == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))
    turned = procrustes(a, b)
    matrix, strength = scipy.linalg.orthogonal_procrustes(x, y)
    assert turned.residual == pytest.approx(np.linalg.norm(x @ matrix - y) ** 2 / (2 * n))
    assert turned.aligned.mean() == pytest.approx(strength / n)
    np.testing.assert_allclose(turned.cosines, (x * y).sum(1))
    if traits > d_model:  # only then is the rotation unique
        np.testing.assert_allclose(turned.aligned, (x @ matrix * y).sum(1))


def test_p_is_that_of_all_permutations() -> None:
    """Breaks if pairs instead of traits are permuted, p has two sides, or the identity does not count as a hit."""
    a, b = random_rows(5, 12, 3), random_rows(5, 12, 4) + 0.5 * random_rows(5, 12, 3)
    k, m = (unit(rows) @ unit(rows).T for rows in (a, b))
    orders = permutations(range(5))  # the first changes nothing
    everything = np.array([scipy.stats.spearmanr(upper(k), upper(m[np.ix_(o, o)]))[0] for o in orders])
    exact = (everything >= everything[0] - 1e-12).mean()
    assert 0.01 < exact < 0.5
    found = rsa(a, b, permutations=4000, replicates=1).p
    assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000) + 1 / 4000


def test_unrelated_spaces_are_called_the_same_as_often_as_promised() -> None:
    """Breaks if pairs of traits count as independent.

    Traits share one axis to different degrees, so all cosines of one trait are high or low together.
    """
    below = 0
    for seed in range(200):
        spaces = [random_rows(10, 30, 2 * seed + side) for side in (0, 1)]
        for rows in spaces:
            rows[:, 0] = 8 * torch.sigmoid(3 * rows[:, 0])
        below += rsa(*spaces, permutations=199, replicates=1, seed=seed).p <= 0.05
    low, high = scipy.stats.binom.interval(0.99, 200, 0.05)
    assert low <= below <= high


def test_the_planted_correlations_are_found() -> None:
    """Breaks if the given matrix is compared with something else than the cosines of the same traits."""
    planted = correlations(12, seed=0)
    found = rsa_with_matrix(traits_with(planted, 60, 0.3, seed=1), planted, permutations=999, replicates=300)
    assert found.correlation > 0.9
    assert found.p == 1 / 1000
    assert 0.7 < found.low < found.correlation < found.high < 1
    other = rsa_with_matrix(traits_with(correlations(12, seed=5), 60, 0.3, seed=1), planted, 999, 300)
    assert other.p > 0.05
    assert other.low < 0 < other.high
    models = [traits_with(planted, 60, 0.3, seed=seed) for seed in (1, 7)]
    assert rsa(*models, permutations=999, replicates=1).correlation > 0.85
    again = rsa(*models, permutations=99, replicates=9, seed=1)
    assert again == rsa(*models, permutations=99, replicates=9, seed=1)
    assert again != rsa(*models, permutations=99, replicates=9, seed=2)


def test_the_interval_lies_around_what_was_observed() -> None:
    """Breaks if pairs of a trait with itself stay in the resamples: they pull unrelated spaces up by 0.4."""
    middle = []
    for seed in range(16):
        found = rsa(random_rows(8, 30, 2 * seed), random_rows(8, 30, 2 * seed + 1), permutations=1, replicates=150)
        assert found.low < found.correlation < found.high
        middle.append((found.low + found.high) / 2)
    assert abs(np.mean(middle)) < 4 * np.std(middle) / 4


def test_few_traits_in_many_dimensions_flatter_biased_cka_and_procrustes() -> None:
    """Breaks if the unbiased HSIC keeps the diagonals: then unrelated spaces look alike."""
    pairs = [(random_rows(8, 200, 2 * seed), random_rows(8, 200, 2 * seed + 1)) for seed in range(40)]
    cka = [linear_cka(a, b) for a, b in pairs]
    unbiased = np.array([found.unbiased for found in cka])
    assert min(found.biased for found in cka) > 0.9
    assert abs(unbiased.mean()) < 4 * unbiased.std() / np.sqrt(40)
    assert min(procrustes(a, b).aligned.mean() for a, b in pairs) > 0.95
    # Two orthogonal sets align perfectly although no trait kept its place.
    axes = torch.eye(10, dtype=torch.float64)
    moved = procrustes(axes[:4], axes[4:8])
    assert moved.residual == pytest.approx(0, abs=1e-12)
    assert moved.cosines.tolist() == [0.0] * 4


def test_principal_angles_of_planted_planes() -> None:
    """Breaks if angles come in another order, or a direction that depends on others adds an axis of noise."""
    axes = torch.eye(5, dtype=torch.float64)
    tilted = torch.stack([axes[0] + axes[1], np.cos(0.3) * axes[2] + np.sin(0.3) * axes[3]])
    np.testing.assert_allclose(principal_angles(axes[[0, 1, 2]], tilted), [0, 0.3], atol=1e-7)
    means = random_rows(5, 16, 3).float()
    contrasts = means - (means.sum(0) - means) / 4  # each against the mean of all others: they add up to zero
    assert orthonormal_basis(contrasts).shape == (16, 4)
    assert len(principal_angles(contrasts, random_rows(6, 16, 4))) == 4


def test_nulls_beside_what_was_observed() -> None:
    """Breaks if a null keeps what it should destroy, destroys what it should keep, or p counts the wrong side."""
    planted = correlations(8, seed=2)
    a, b = traits_with(planted, 40, 0.2, seed=3), traits_with(planted, 40, 0.2, seed=3) @ rotation(40)
    strong = torch.tensor([20.0] * 3 + [1.0] * 37, dtype=torch.float64)
    nulls = similarity_nulls(a, b, draws=40, activations=random_rows(500, 40, 9) * strong)
    rows = beside_nulls(space_similarity(a, b), nulls).to_dict("records")
    p = {(row["measure"], row["null"]): float(row["p"]) for row in rows}
    found = [p[measure, kind] for measure in ("rsa", "cka_unbiased", "aligned_cosine") for kind in nulls]
    assert found == [1 / 41] * 9
    assert p["overlap", "isotropic"] > 0.02
    assert np.ptp(nulls["shuffled"]["overlap"].to_numpy()) < 1e-9
    assert nulls["isotropic"]["overlap"].to_numpy().mean() == pytest.approx(8 / 40, abs=0.03)
    # Random directions along three strong axes lie close to one another.
    cka = {kind: table["cka"].to_numpy().mean() for kind, table in nulls.items()}
    assert cka["covariance"] < cka["isotropic"]
    again = similarity_nulls(a, b, draws=40, activations=random_rows(500, 40, 9) * strong)
    assert all(again[kind].equals(nulls[kind]) for kind in nulls)
    assert not similarity_nulls(a, b, draws=40, seed=1)["isotropic"].equals(nulls["isotropic"])
    assert set(similarity_nulls(a, b, draws=1)) == {"isotropic", "shuffled"}


def test_projection_share_of_planted_vectors() -> None:
    """Breaks if the basis is not orthonormal, or shares are of lengths instead of squares."""
    axes = torch.eye(6, dtype=torch.float64)
    skewed = torch.stack([axes[0], axes[0] + 0.01 * axes[1], 7 * axes[0] - axes[1]])
    assert projection_share(5 * axes[1] - axes[0], skewed, draws=1).share == pytest.approx(1)
    assert projection_share(axes[2], skewed, draws=1).share == pytest.approx(0, abs=1e-12)
    found = projection_share(3 * axes[1] + 4 * axes[4], skewed, draws=1)
    assert (found.share, found.dimensions) == (pytest.approx(9 / 25), 2)


def test_projection_share_beside_random_subspaces() -> None:
    """Breaks if the isotropic null has another dimension (its shares follow a known beta distribution), or the
    covariance null does not know the strong axes."""
    strong = torch.tensor([9.0, 9.0] + [0.5] * 28, dtype=torch.float64)
    activations = random_rows(400, 30, 0) * strong
    shift, directions = torch.zeros(30, dtype=torch.float64), random_rows(4, 30, 1) * strong
    shift[:2] = 1
    found = projection_share(shift.float(), directions, draws=600, activations=activations)
    assert scipy.stats.kstest(found.nulls["isotropic"], scipy.stats.beta(4 / 2, 26 / 2).cdf).pvalue > 0.01
    # Any directions of these activations hold such a shift: remarkable beside isotropic ones only.
    assert found.share > 0.9
    assert found.p("isotropic") == 1 / 601
    assert found.p("covariance") > 0.1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.eye(4)[:3] + 0.1, torch.rand(3, 4), "at least 4 traits, here are 3"),
        (torch.rand(4, 6), torch.rand(5, 6), "4 traits cannot be compared with 5"),
        (torch.rand(4, 6) * torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.rand(4, 6), "number 1 of 4"),
        (torch.rand(4, 6), torch.full((4, 6), torch.nan), "number 0 of 4"),
        (torch.eye(4, 6), torch.rand(4, 6), "equally similar"),
        (torch.rand(4, 6), torch.rand(4, 7), "6 and of 7 values"),
    ],
)
def test_bad_input(a: Tensor, b: Tensor, message: str) -> None:
    """Breaks if bad input ends in a NaN or in an error of numpy or scipy."""
    with pytest.raises(UserError, match=message):
        space_similarity(a, b)


def test_bad_settings() -> None:
    """Breaks if an empty null or a matrix that is no similarity gives a number."""
    a = random_rows(5, 6, 0)
    skewed = np.arange(25.0).reshape(5, 5)
    for matrix in (skewed, np.full((5, 5), np.nan)):
        with pytest.raises(UserError, match="not symmetric or not finite"):
            rsa_with_matrix(a, matrix)
    with pytest.raises(UserError, match="equally similar"):
        rsa_with_matrix(a, np.eye(5))
    with pytest.raises(UserError, match="1 permutation"):
        rsa(a, a, permutations=0)
    with pytest.raises(UserError, match="at least 1 draw"):
        similarity_nulls(a, a, draws=0)
    with pytest.raises(UserError, match="of 6 and of 4 values"):
        projection_share(torch.ones(6), a, activations=torch.rand(9, 4))
    with pytest.raises(UserError, match="of 4 and of 6 values"):
        projection_share(torch.ones(4), a)
    with pytest.raises(UserError, match="No direction for good; there are: evil"):
        trait_matrix({"evil": torch.ones(3)}, ["evil", "good"])
    with pytest.raises(UserError, match="differ in width"):
        trait_matrix({"evil": torch.ones(3), "good": torch.ones(4)}, ["evil", "good"])
