"""Is a space of directions the same in two models? Matrices [trait d_model], the same traits in the same order.

How the personality space's stability was measured is not published, so several measures are offered. Two kinds have
to be told apart: RSA, CKA and Procrustes ask whether the traits lie to *one another* as before, wherever they point;
the plain cosines and the principal angles ask whether they still point *there*. All measures see unit directions (our
choice), so a trait counts alike whatever the length of its direction. Everything is computed in float64.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from einops import rearrange
from jaxtyping import Float, Float64
from torch import Tensor

from activations.errors import UserError
from diffing.directions.random_directions import covariance_directions, isotropic_directions
from diffing.personality.spaces import orthonormal_basis, unit_directions
from diffing.statistics.correlation import spearman, unit_ranks
from diffing.statistics.hypothesis import upper_p
from diffing.statistics.intervals import percentile_interval

# With 3 traits there are 3 cosines to rank and 6 ways to name them, and unbiased HSIC is not defined.
_FEWEST_TRAITS = 4
# A bootstrap resample with fewer different traits has too few different cosines.
_FEWEST_RESAMPLED = 3
# Cosines that differ by less are equal up to rounding, and their ranks are noise.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Rsa:
    """Agreement of two similarity matrices.

    Attributes:
        correlation: Spearman correlation of their upper triangles.
        p: One-sided permutation p for a positive correlation (Mantel test).
        low, high: 95% percentile interval, bootstrapped over traits.
        traits: Their number.
    """

    correlation: float
    p: float
    low: float
    high: float
    traits: int


@dataclass(frozen=True)
class Cka:
    """Linear CKA of two sets of directions.

    Attributes:
        biased: As published, 0-1. With few traits in many dimensions it is near 1 for unrelated sets, too.
        unbiased: With the unbiased HSIC: around 0 for unrelated sets and negative for some of them, 1 for rotated ones.
    """

    biased: float
    unbiased: float


@dataclass(frozen=True)
class Procrustes:
    """One set of directions rotated (and reflected) onto another.

    Attributes:
        residual: ||A R - B||^2 / (||A||^2 + ||B||^2), 0-1; with unit rows 1 - mean of `aligned`.
        cosines: Cosine of each trait's two directions as they are.
        aligned: The same after the rotation.
    """

    residual: float
    cosines: Float64[np.ndarray, "trait"]
    aligned: Float64[np.ndarray, "trait"]


@dataclass(frozen=True)
class SpaceSimilarity:
    """Every measure as one number, for a table beside its null.

    Attributes:
        rsa: Spearman correlation of the cosine matrices.
        cka, cka_unbiased: Linear CKA.
        aligned_cosine: Mean over traits, after the best rotation.
        cosine: Mean over traits, as they are.
        overlap: Mean squared cosine of the principal angles between the spans (0-1).
    """

    rsa: float
    cka: float
    cka_unbiased: float
    aligned_cosine: float
    cosine: float
    overlap: float


@dataclass(frozen=True)
class ProjectionShare:
    """How much of a vector lies in a subspace.

    Attributes:
        share: Of its squared norm (0-1).
        dimensions: Of the subspace.
        nulls: Kind ("isotropic", "covariance") -> shares in random subspaces of as many dimensions.
    """

    share: float
    dimensions: int
    nulls: Mapping[str, Float64[np.ndarray, "draw"]]

    def p(self, kind: str) -> float:
        """How often a random subspace of this kind holds as much of the vector."""
        return upper_p(self.share, self.nulls[kind])


def rsa(
    a: Float[Tensor, "trait d_model"],
    b: Float[Tensor, "other_trait other_width"],
    permutations: int = 10_000,
    replicates: int = 2000,
    seed: int = 0,
) -> Rsa:
    """Representational similarity analysis (Kriegeskorte et al. 2008) of two sets of directions.

    Spearman correlation of the upper triangles of the two cosine matrices. Neither their place nor their rotation in
    activation space matters, so the models may differ in width. p: see `rsa_with_matrix`, as for the interval.

    Raises:
        UserError: if the traits are not as many, fewer than 4, a direction is zero or not finite, all cosines of a set
            are equal, or there are no permutations or replicates.
    """
    return rsa_with_matrix(a, _cosines(b), permutations, replicates, seed)


def rsa_with_matrix(
    a: Float[Tensor, "trait d_model"],
    similarity: Float64[np.ndarray, "given_trait given_trait"],
    permutations: int = 10_000,
    replicates: int = 2000,
    seed: int = 0,
) -> Rsa:
    """`rsa` of directions against given similarities of their traits, as the correlations that generated a world.

    p: the traits' names are permuted in one matrix (Mantel 1967), which keeps the dependence of cosines that share a
    trait; one-sided, (1 + hits) / (1 + permutations). It cannot fall below about 1 / (number of traits)!.

    Interval: traits are resampled and pairs of a trait with itself left out, for their cosine is 1 in both matrices
    (as Schuett et al. 2023 do); resamples of fewer than 3 different traits are drawn again. It tells how the number
    depends on the choice of traits. In simulations it covers the value of all traits in 95-100% of cases, the more
    conservative the fewer traits. Noise in the directions lowers the correlation and is not in it: see
    `diffing.personality.reliability`.

    Args:
        a: Directions of any norm.
        similarity: Symmetric; the diagonal is not used.
        permutations: Of the traits' names.
        replicates: Bootstrap resamples of traits.
        seed: Of permutations and resamples.

    Raises:
        UserError: as `rsa`, and if the matrix is not symmetric or not finite.
    """
    cosines = _cosines(a)
    _require_same_traits(len(cosines), len(similarity))
    if not np.allclose(similarity, similarity.T):
        raise UserError("The matrix of similarities is not symmetric or not finite; give one value for each pair.")
    _require_varied(similarity)
    if min(permutations, replicates) < 1:
        raise UserError(
            f"RSA needs at least 1 permutation and 1 replicate, not {permutations} and {replicates}; correct them."
        )
    generator = np.random.default_rng(seed)
    observed = _rank_correlation(cosines, similarity)
    null = _permuted(cosines, similarity, permutations, generator)
    low, high = percentile_interval(_resampled(cosines, similarity, replicates, generator))
    return Rsa(observed, upper_p(observed, null), low, high, len(cosines))


def linear_cka(a: Float[Tensor, "trait d_model"], b: Float[Tensor, "other_trait other_width"]) -> Cka:
    """Linear centred kernel alignment (Kornblith et al. 2019), traits as rows.

    With Gram matrices K = A A^T and L = B B^T: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)). Kornblith et al. take the
    biased HSIC, tr(K H L H) with H the centring. A dozen directions in thousands of dimensions are nearly orthogonal,
    both Gram matrices nearly the identity, and so any two sets nearly "the same". The unbiased HSIC (Song et al. 2012;
    Nguyen et al. 2021 use it in CKA) leaves the diagonals out: the one to report for few traits. It is computed as the
    inner product of U-centred matrices (Szekely & Rizzo 2014), the same number.

    Raises:
        UserError: as `rsa`.
    """
    first, second = _cosines(a), _cosines(b)
    _require_same_traits(len(first), len(second))
    return Cka(_alignment(_centred(first), _centred(second)), _alignment(_u_centred(first), _u_centred(second)))


def procrustes(a: Float[Tensor, "trait d_model"], b: Float[Tensor, "other_trait other_width"]) -> Procrustes:
    """The rotation R that brings unit directions A closest to B, ||A R - B||^2 least (Schoenemann 1966).

    Directions start at the origin, so nothing is centred. Fewer traits than dimensions leave the rotation so much
    freedom that unrelated sets align well: two orthogonal sets align perfectly. So the result means something only
    beside its null (`similarity_nulls`).

    Raises:
        UserError: if the sets differ in traits or width, or a direction is zero or not finite.
    """
    _require_same_traits(len(a), len(b))
    _require_same_width(a, b)
    rows, others = unit_directions(a), unit_directions(b)
    # Only the spans matter: A = La Qa, B = Lb Qb, and R = Qa^T U V^T Qb with U S V^T = La^T Lb.
    small, small_other = (np.linalg.qr(matrix.T)[1].T for matrix in (rows, others))
    left, _, right = scipy.linalg.svd(small.T @ small_other)
    aligned = np.einsum("ij,ij->i", small @ left @ right, small_other)
    return Procrustes(float(1 - aligned.mean()), np.einsum("ij,ij->i", rows, others), aligned)


def principal_angles(
    a: Float[Tensor, "trait d_model"], b: Float[Tensor, "other_trait other_width"]
) -> Float64[np.ndarray, "angle"]:
    """Angles between the spans in radians, smallest first (Bjoerck & Golub 1973, Knyazev & Argentati 2002).

    As many as the smaller span has dimensions; directions that depend on others to float32's rounding add none.

    Raises:
        UserError: if the sets differ in width, or a direction is zero or not finite.
    """
    _require_same_width(a, b)
    return scipy.linalg.subspace_angles(orthonormal_basis(a), orthonormal_basis(b))[::-1]


def space_similarity(a: Float[Tensor, "trait d_model"], b: Float[Tensor, "other_trait other_width"]) -> SpaceSimilarity:
    """Every measure of two sets: two models, or as a yardstick one model at two layers.

    Raises:
        UserError: as `rsa` and `procrustes`.
    """
    cka, turned = linear_cka(a, b), procrustes(a, b)
    return SpaceSimilarity(
        rsa=_rank_correlation(_cosines(a), _cosines(b)),
        cka=cka.biased,
        cka_unbiased=cka.unbiased,
        aligned_cosine=float(turned.aligned.mean()),
        cosine=float(turned.cosines.mean()),
        overlap=float(np.square(np.cos(principal_angles(a, b))).mean()),
    )


def similarity_nulls(
    a: Float[Tensor, "trait d_model"],
    b: Float[Tensor, "other_trait other_width"],
    draws: int = 200,
    seed: int = 0,
    activations: Float[Tensor, "rows width"] | None = None,
) -> dict[str, pd.DataFrame]:
    """`space_similarity` of `a` with sets that have nothing to do with it: one row a draw.

    Kinds: "isotropic", random directions instead of `b`; "covariance" (where activations are given), random directions
    along which activations vary; "shuffled", `b` with its traits' names permuted, which leaves the overlap as it is.

    Args:
        a: Of the first model.
        b: Of the second.
        draws: Of each kind.
        seed: Of the draws.
        activations: Of the second model, for their covariance.

    Raises:
        UserError: as `space_similarity`, if the activations have another width, or draws is below 1.
    """
    sets = _random_sets(len(b), b.shape[1], draws, seed, activations)
    generator = torch.Generator().manual_seed(seed)
    sets["shuffled"] = torch.stack([b[torch.randperm(len(b), generator=generator)] for _ in range(draws)])
    return {kind: pd.DataFrame([asdict(space_similarity(a, other)) for other in drawn]) for kind, drawn in sets.items()}


def beside_nulls(observed: SpaceSimilarity, nulls: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Each measure with its null's mean and central 95% and the one-sided p, one row for each measure and kind.

    Returns:
        Columns `measure`, `value`, `null` (the kind), `null_mean`, `null_low`, `null_high`, `p`.
    """
    rows = []
    for measure, value in asdict(observed).items():
        for kind, table in nulls.items():
            null = table[measure].to_numpy()
            low, high = percentile_interval(null)
            found = {"null_mean": null.mean(), "null_low": low, "null_high": high, "p": upper_p(value, null)}
            rows.append({"measure": measure, "value": value, "null": kind, **found})
    return pd.DataFrame(rows)


def projection_share(
    vector: Float[Tensor, "width"],
    directions: Float[Tensor, "trait d_model"],
    draws: int = 500,
    seed: int = 0,
    activations: Float[Tensor, "rows activation_width"] | None = None,
) -> ProjectionShare:
    """Share of a vector's squared norm that lies in the span of directions, ||P v||^2 / ||v||^2.

    For a mean shift (corrupted - base): how much of what the fine-tune did happened in the personality space.

    Args:
        vector: Of any norm.
        directions: Of the traits; those that depend on others to float32's rounding add no dimension.
        draws: Random subspaces of each kind: spans of isotropic directions and, with activations, of directions that
            have their covariance (the harder null where both the shift and the traits lie along the strong axes).
        seed: Of the draws.
        activations: Of the model, for their covariance.

    Raises:
        UserError: if the vector is zero, not finite, or of another width, a direction is zero or not finite, the
            activations have another width, or draws is below 1.
    """
    _require_same_width(vector[None], directions)
    unit = unit_directions(vector[None])[0]
    basis = orthonormal_basis(directions)
    nulls = {
        kind: np.array([_share(unit, orthonormal_basis(other)) for other in drawn])
        for kind, drawn in _random_sets(basis.shape[1], len(unit), draws, seed, activations).items()
    }
    return ProjectionShare(_share(unit, basis), basis.shape[1], nulls)


def _share(unit: Float64[np.ndarray, "d_model"], basis: Float64[np.ndarray, "d_model axis"]) -> float:
    return float(np.square(unit @ basis).sum())


def _random_sets(
    count: int, d_model: int, draws: int, seed: int, activations: Float[Tensor, "rows width"] | None
) -> dict[str, Float64[Tensor, "draw direction d_model"]]:
    """Sets of `count` random directions, of each kind."""
    if draws < 1:
        raise UserError(f"A null needs at least 1 draw, not {draws}; give a larger number of draws.")
    drawn = {"isotropic": isotropic_directions(d_model, draws * count, seed)}
    if activations is not None:
        _require_same_width(drawn["isotropic"], activations)
        drawn["covariance"] = covariance_directions(activations, draws * count, seed)
    pattern = "(draw direction) d_model -> draw direction d_model"
    return {kind: rearrange(directions, pattern, draw=draws) for kind, directions in drawn.items()}


def _cosines(directions: Float[Tensor, "trait d_model"]) -> Float64[np.ndarray, "trait trait"]:
    rows = unit_directions(directions, _FEWEST_TRAITS)
    gram = rows @ rows.T
    _require_varied(gram)
    return gram


def _rank_correlation(first: Float64[np.ndarray, "trait trait"], second: Float64[np.ndarray, "trait trait"]) -> float:
    """Spearman's correlation of the upper triangles."""
    upper = np.triu_indices(len(first), 1)
    return spearman(first[upper], second[upper])


def _permuted(
    first: Float64[np.ndarray, "trait trait"],
    second: Float64[np.ndarray, "trait trait"],
    permutations: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "draw"]:
    """Correlations under random names of the second matrix's traits; its ranks change their places only."""
    i, j = np.triu_indices(len(first), 1)
    fixed, ranks = unit_ranks(first[i, j]), np.zeros_like(second)
    ranks[i, j] = ranks[j, i] = unit_ranks(second[i, j])
    names = (generator.permutation(len(first)) for _ in range(permutations))
    return np.array([fixed @ ranks[name[i], name[j]] for name in names])


def _resampled(
    first: Float64[np.ndarray, "trait trait"],
    second: Float64[np.ndarray, "trait trait"],
    replicates: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "draw"]:
    """Correlations over resampled traits, without the pairs of a trait with itself."""
    i, j = np.triu_indices(len(first), 1)
    draws: list[float] = []
    while len(draws) < replicates:
        traits = generator.integers(0, len(first), len(first))
        kept = traits[i] != traits[j]
        pairs = traits[i][kept], traits[j][kept]
        draw = spearman(first[pairs], second[pairs])
        if len(np.unique(traits)) >= _FEWEST_RESAMPLED and np.isfinite(draw):
            draws.append(draw)
    return np.array(draws)


def _centred(gram: Float64[np.ndarray, "trait trait"]) -> Float64[np.ndarray, "trait trait"]:
    """H K H: the Gram matrix of the rows without their mean."""
    return gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()


def _u_centred(gram: Float64[np.ndarray, "trait trait"]) -> Float64[np.ndarray, "trait trait"]:
    """The diagonal put to zero and every row's sum brought to zero without it (Szekely & Rizzo 2014)."""
    n, off = len(gram), gram - np.diag(np.diag(gram))
    sums = off.sum(0)
    centred = off - sums / (n - 2) - sums[:, None] / (n - 2) + off.sum() / ((n - 1) * (n - 2))
    return centred - np.diag(np.diag(centred))


def _alignment(first: Float64[np.ndarray, "trait trait"], second: Float64[np.ndarray, "trait trait"]) -> float:
    return float((first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second)))


def _require_varied(similarity: Float64[np.ndarray, "trait trait"]) -> None:
    if np.ptp(similarity[np.triu_indices(len(similarity), 1)]) <= _EQUAL:
        raise UserError(
            "All pairs of traits are equally similar (orthogonal directions, or one for all), so there is no geometry "
            "to compare; take other traits."
        )


def _require_same_traits(first: int, second: int) -> None:
    if first != second:
        raise UserError(f"{first} traits cannot be compared with {second}; give the same ones in the same order.")


def _require_same_width(a: Float[Tensor, "trait d_model"], b: Float[Tensor, "other_trait other_width"]) -> None:
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"Vectors of {a.shape[1]} and of {b.shape[1]} values do not lie in one space; take both at one hook."
        )
