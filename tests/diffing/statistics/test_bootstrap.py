"""Draws of units, and what is computed on them, by hand."""

import numpy as np
import pytest

from diffing.statistics.bootstrap import draw_cases, draw_units, resampled_ratio, stability


def test_draws_are_kept_and_cannot_be_written_to() -> None:
    """Breaks if one caller could change the questions that all later ones draw."""
    with pytest.raises(ValueError, match="read-only"):
        draw_units(5, 0)[0, 0] = 7


def test_models_of_one_unit_are_drawn_together() -> None:
    """Else several checkpoints of one fine-tune would count as so many fine-tunes."""
    positive = np.array([True, True, True, False, False, False, False])
    weights = draw_cases(list("aabccde"), 50, 0, positive)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 2]].sum(1) == 2).all()


class TestResampledRatio:
    def test_is_over_answers_of_resampled_questions(self):
        """Breaks if questions with few answers weigh as much as others, or answers are resampled."""
        sums, answers = np.array([10.0, 0.0, 9.0]), np.array([10, 2, 3])
        drawn = resampled_ratio(sums, answers, seed=4)
        possible = {
            (i * 10 + k * 9) / (i * 10 + j * 2 + k * 3)
            for i in range(4)
            for j in range(4)
            for k in range(4)
            if i + j + k == 3
        }
        assert {round(float(value), 9) for value in drawn} == {round(value, 9) for value in possible}
        assert (drawn == 0).mean() == pytest.approx(1 / 27, abs=0.015)

    def test_one_seed_draws_the_same_questions_for_all(self):
        rng = np.random.default_rng(0)
        sums, answers = rng.normal(size=20), np.full(20, 5)
        assert resampled_ratio(sums + 2 * answers, answers, 1) - resampled_ratio(sums, answers, 1) == pytest.approx(2)
        assert not np.array_equal(resampled_ratio(sums, answers, 1), resampled_ratio(sums, answers, 2))

    @pytest.mark.filterwarnings("error")
    def test_a_replicate_without_answers_has_no_mean(self):
        drawn = resampled_ratio(np.array([6.0, 0.0]), np.array([2, 0]))
        assert np.isnan(drawn).mean() == pytest.approx(1 / 4, abs=0.05)
        assert set(drawn[~np.isnan(drawn)]) == {3.0}


def test_stability_counts_places() -> None:
    means = np.array([[5.0, -6.0, 1.0, 0.0], [5.0, 0.5, -1.0, 0.0]])
    assert stability(means, 2).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert stability(means, 4).tolist() == [1.0] * 4
