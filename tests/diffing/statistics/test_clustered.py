"""Means of answers in clusters, against a slow bootstrap, and intervals that cover together."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from diffing.statistics.clustered import Tally, contrast, mean_interval, paired_difference, simultaneous_differences


def tally(*questions: Sequence[float]) -> Tally:
    """A value of each answer to each question."""
    return Tally.of_values(np.array(questions, dtype=float))


def slow_draws(sums: np.ndarray, answers: np.ndarray) -> list[float]:
    """The resampled mean, a question at a time."""
    rng, draws = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = rng.integers(len(sums), size=len(sums))
        draws.append(sum(sums[i] for i in drawn) / sum(answers[i] for i in drawn))
    return draws


class TestTally:
    def test_means_are_over_answers(self) -> None:
        """Breaks if questions are averaged first, or NaN counts as an answer."""
        found = tally([100, 100], [0, math.nan], [math.nan, math.nan])
        assert (found.sums.tolist(), found.answers.tolist()) == ([200, 0, 0], [2, 1, 0])
        assert found.mean == pytest.approx(200 / 3)

    def test_interval_equals_a_slow_bootstrap_over_questions(self) -> None:
        rng = np.random.default_rng(0)
        one = Tally(rng.binomial(10, 0.3, 40).astype(float), np.full(40, 10.0))
        found, draws = mean_interval(one), slow_draws(one.sums, one.answers)
        assert found[0] == one.sums.sum() / 400
        assert found[1:] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.01)

    def test_differences_pair_questions(self) -> None:
        """Questions differ a lot, the difference within each does not: it has no width."""
        rows = [[20.0 * i] * 2 for i in range(5)]
        low, high = tally(*rows), tally(*([value + 7 for value in row] for row in rows))
        assert paired_difference(high, low) == pytest.approx((7, 7, 7))
        backwards = paired_difference(high, tally(*rows[::-1]))
        assert backwards[0] == pytest.approx(7)
        assert backwards[1] < 0 < 14 < backwards[2]

    def test_seeds_are_pooled_by_question(self) -> None:
        first, second = tally([1, 1], [0, 0]), tally([0, 0], [0, math.nan])
        both = Tally.pooled([first, second])
        assert (both.sums.tolist(), both.answers.tolist()) == ([2, 0], [4, 3])

    def test_no_answer_has_a_value(self) -> None:
        """Breaks if nothing becomes 0, or ends in an error or a warning."""
        none = tally([math.nan], [math.nan])
        assert all(math.isnan(value) for value in (*mean_interval(none), *paired_difference(none, tally([1], [1]))))
        # Replicates that draw the second question only have no mean and are left out.
        assert mean_interval(tally([5], [math.nan])) == (5, 5, 5)


def test_contrasts_pair_questions_of_all_terms() -> None:
    """Questions differ a lot, the difference of two differences does not: it has no width."""
    rows = [[20.0 * i] * 2 for i in range(5)]
    terms = [tally(*([value + more for value in row] for row in rows)) for more in (0, 7, 1, 3)]
    assert contrast(list(zip((-1, 1, 1, -1), terms, strict=True))) == pytest.approx((5, 5, 5))
    with pytest.raises(ValueError, match="same questions"):
        contrast([(1, terms[0]), (-1, tally([1]))])


class TestSimultaneousDifferences:
    def test_intervals_cover_a_whole_family_of_no_effects(self):
        """Of 200 families of 30 arms like the untouched one, 95% have no interval that misses 0 (99% binomial bound).

        Breaks if every interval covers only its own difference: then most families have one that misses.
        """
        draw, missed, alone = np.random.default_rng(0), 0, 0
        for _ in range(200):
            rates = draw.beta(2, 6, 30)
            untouched, *arms = (binomial_tally(draw, rates) for _ in range(31))
            found = simultaneous_differences([(arm, untouched) for arm in arms])
            missed += any(low > 0 or high < 0 for _, low, high in found)
            alone += any(not low <= 0 <= high for _, low, high in (paired_difference(arm, untouched) for arm in arms))
        assert missed <= scipy.stats.binom.ppf(0.995, 200, 0.05)
        assert alone > 100

    def test_points_are_those_of_single_differences_and_sure_ones_have_no_width(self):
        first, second = uneven_tally(seed=1), uneven_tally(seed=2)
        sure, none = (Tally(np.full(40, harmful), np.full(40, 10)) for harmful in (3, 0))
        found = simultaneous_differences([(first, second), (sure, none)])
        assert found[0][0] == pytest.approx(paired_difference(first, second)[0])
        assert found[0][1] < found[0][0] < found[0][2]
        assert found[1] == pytest.approx((0.3, 0.3, 0.3))
        assert simultaneous_differences([]) == []


def binomial_tally(draw: np.random.Generator, rates: np.ndarray) -> Tally:
    return Tally(draw.binomial(20, rates), np.full(len(rates), 20))


def uneven_tally(seed: int) -> Tally:
    """Some questions are answered harmfully much more often than others, and not all have as many answers."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(10, 30, 40)
    return Tally(rng.binomial(answers, rng.beta(0.5, 0.5, 40)), answers)
