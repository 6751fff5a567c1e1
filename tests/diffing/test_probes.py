"""Probes: fits written out, planted directions, splits that nothing leaks through, and calibrated scores."""

import numpy as np
import pytest
import scipy.stats
import torch

from activations.errors import UserError
from diffing.personality.probes import (
    PROBES,
    Fit,
    Probe,
    ProbeData,
    difference_of_means,
    held_out_score,
    logistic,
    score_probe,
    split_pairs,
    sweep_layers,
    transfer_matrix,
)

BOTH = pytest.mark.parametrize("fit", list(PROBES.values()), ids=list(PROBES))


def apart(pairs: int, d_model: int, shift: np.ndarray | float, seed: int) -> ProbeData:
    """Pairs of normal rows, the positive ones moved by `shift` (a number: along the first axis)."""
    positive, negative = np.random.default_rng(seed).normal(size=(2, pairs, d_model))
    moved = shift if isinstance(shift, np.ndarray) else shift * np.eye(d_model)[0]
    return ProbeData.from_pairs(positive + moved, negative)


def memorable(pairs: int, seed: int) -> ProbeData:
    """A pair is a random vector and its opposite: known from its counterpart only."""
    vectors = np.random.default_rng(seed).normal(size=(pairs, 300))
    return ProbeData.from_pairs(vectors, -vectors)


def test_pairs_keep_their_numbers_when_others_are_left_out() -> None:
    """Breaks if pairs are numbered anew: then conditions with other gaps no longer match."""
    positive, negative = np.arange(12.0).reshape(2, 6)[:, :, None]
    positive[1], negative[4] = np.nan, np.nan
    data = ProbeData.from_pairs(positive, negative)
    assert data.pair.tolist() == [0, 2, 3, 5] * 2
    assert data.activations[:, 0].tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert data.positive.tolist() == [True] * 4 + [False] * 4
    chosen = data.of(np.array([2, 5]))
    assert chosen.activations[:, 0].tolist() == [2, 5, 8, 11]
    assert (chosen.pair.tolist(), chosen.positive.tolist()) == ([2, 5, 2, 5], [True, True, False, False])


def test_difference_of_means_written_out() -> None:
    """Breaks if the direction is turned, or the cut is not in the middle (here of unequally many prompts)."""
    rows = np.array([[4.0, 0.0], [6.0, 2.0], [1.0, 1.0]], dtype=np.float32)
    probe = difference_of_means(ProbeData(rows, np.array([True, True, False]), np.array([0, 1, 1])))
    assert probe.weights.tolist() == [4.0, 0.0]
    assert probe.scores(np.array([[3.0, 9.0], [4.0, 0.0]])).tolist() == [0.0, 4.0]


@pytest.mark.parametrize(("pairs", "d_model", "l2"), [(40, 3, 0.01), (10, 50, 0.1)])
def test_logistic_probe_is_at_the_minimum_of_its_loss(pairs: int, d_model: int, l2: float) -> None:
    """Breaks if the ridge also shrinks the bias, the loss is summed, or the probe is not put back into its units."""
    data = apart(pairs, d_model, 1.5, seed=0)
    data = ProbeData(5 * data.activations + 30, data.positive, data.pair)
    probe = logistic(data, l2)
    rows = torch.from_numpy(data.activations)
    centre = rows.mean(0)
    scale = (rows - centre).square().mean().sqrt()
    weights = torch.from_numpy(probe.weights * scale.item()).requires_grad_()
    bias = torch.tensor(probe.bias + float(probe.weights @ centre.numpy()), dtype=torch.float64, requires_grad=True)
    signs = torch.from_numpy(np.where(data.positive, 1.0, -1.0))
    margins = signs * ((rows - centre) / scale @ weights + bias)
    loss = torch.nn.functional.softplus(-margins).mean() + l2 / 2 * weights.square().sum()
    loss.backward()
    assert weights.grad is not None
    assert bias.grad is not None
    assert max(weights.grad.abs().max(), bias.grad.abs()) < 1e-5
    assert np.linalg.norm(probe.weights) > 0


@BOTH
def test_probes_do_not_depend_on_units_axes_or_order(fit: Fit) -> None:
    """Breaks if dimensions are scaled one by one, or float32 is summed in float32."""
    data = apart(30, 6, 1.0, seed=1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    moved = 100 * data.activations @ turn + 1e4 * turn[0]
    order = np.random.default_rng(3).permutation(60)
    other = fit(ProbeData(moved[order], data.positive[order], data.pair[order])).scores(moved)
    own = fit(data).scores(data.activations)
    ratio = 1.0 if fit is logistic else 1e4
    np.testing.assert_allclose(other, ratio * own, rtol=1e-3, atol=1e-3 * ratio)


@BOTH
def test_a_planted_direction_is_found_and_scored_as_expected(fit: Fit) -> None:
    """Breaks if the AUC is turned, or measured on the prompts that the probe was fitted on (then it is near 1)."""
    probe, score = held_out_score(apart(600, 20, 1.5, seed=4), fit)
    assert probe.weights[0] / np.linalg.norm(probe.weights) > 0.9
    expected = scipy.stats.norm.cdf(1.5 / np.sqrt(2))
    assert score.auc == pytest.approx(expected, abs=0.04)
    assert score.auc_interval[0] < expected < score.auc_interval[1]
    assert score.accuracy == pytest.approx(scipy.stats.norm.cdf(1.5 / 2), abs=0.05)
    assert score.separation == pytest.approx(1.5, abs=0.2)
    assert score.pairs == 300


@BOTH
def test_counterparts_never_straddle_the_split(fit: Fit) -> None:
    """Breaks if prompts are split instead of pairs: a probe knows each counterpart, and held-out AUC leaves 0.5."""
    aucs = [held_out_score(memorable(40, seed), fit, seed=seed)[1].auc for seed in range(12)]
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(12)
    known = score_probe(fit(memorable(40, 0)), memorable(40, 0))
    assert known.auc == 1


def test_parts_of_a_split() -> None:
    """Breaks if parts share pairs or lose some, or the split depends on the order of prompts."""
    pairs = np.repeat(np.arange(3, 23), 2)
    parts = split_pairs(pairs, (0.5, 0.25, 0.25), seed=3)
    assert [len(part) for part in parts] == [10, 5, 5]
    assert sorted(np.concatenate(parts).tolist()) == list(range(3, 23))
    again = split_pairs(pairs[::-1].copy(), (0.5, 0.25, 0.25), seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
    other = split_pairs(pairs, (0.5, 0.25, 0.25), seed=4)
    assert not np.array_equal(parts[0], other[0])


def test_intervals_are_calibrated_where_nothing_is_to_be_found() -> None:
    """Breaks if fitted pairs enter the test, or the intervals are of another coverage."""
    scores = [held_out_score(apart(60, 30, 0.0, seed), seed=seed)[1] for seed in range(200)]
    for name in ("auc_interval", "accuracy_interval"):
        outside = sum(not low <= 0.5 <= high for low, high in (getattr(score, name) for score in scores))
        assert outside <= scipy.stats.binom.ppf(0.995, 200, 0.05)


def test_a_perfect_probe_is_not_certain() -> None:
    """Breaks if the interval has no width where all prompts are told apart, or rows of one pair count for more."""
    scores = {pairs: held_out_score(apart(pairs, 4, 30.0, seed=0))[1] for pairs in (12, 200)}
    assert [score.auc for score in scores.values()] == [1.0, 1.0]
    assert scores[12].auc_interval[0] < scores[200].auc_interval[0] < 1 == scores[200].auc_interval[1]
    assert scores[12].accuracy_interval[0] < scores[200].accuracy_interval[0] < 1
    data = apart(12, 4, 30.0, seed=0)
    tripled = ProbeData(*(np.concatenate([part] * 3) for part in (data.activations, data.positive, data.pair)))
    assert held_out_score(tripled)[1] == scores[12]


@BOTH
def test_transfer_between_planted_conditions(fit: Fit) -> None:
    """Breaks if rows and columns are mixed up, or a condition is tested on pairs that another was fitted on."""
    axes = np.eye(300)
    conditions = {
        "same": apart(80, 300, 6 * axes[0], seed=1),
        "more": apart(80, 300, 6 * axes[0] + 6 * axes[1], seed=2),
        "opposite": apart(80, 300, -6 * axes[0], seed=3),
        "other": apart(80, 300, 6 * axes[2], seed=4),
    }
    offset = ProbeData(
        conditions["same"].activations + 20 * axes[0], conditions["same"].positive, conditions["same"].pair
    )
    table = transfer_matrix({**conditions, "offset": offset}, fit)
    assert len(table) == 25
    found = {(row["fitted_on"], row["tested_on"]): row for row in table.to_dict("records")}
    auc, accuracy = ({key: float(row[name]) for key, row in found.items()} for name in ("auc", "accuracy"))
    assert min(auc[name, name] for name in conditions) > 0.95
    assert min(auc["same", "more"], auc["more", "same"]) > 0.9
    assert auc["same", "opposite"] < 0.1
    assert 0.3 < auc["same", "other"] < 0.7
    fitted, tested = split_pairs(offset.pair, (0.5, 0.5))
    assert auc["same", "other"] == score_probe(fit(conditions["same"].of(fitted)), conditions["other"].of(tested)).auc
    assert auc["same", "other"] != auc["other", "same"]
    # The direction transfers, the threshold does not.
    assert auc["same", "offset"] > 0.95
    assert accuracy["same", "offset"] == pytest.approx(0.5, abs=0.1)
    assert all(row["auc_low"] <= row["auc"] <= row["auc_high"] for row in found.values())
    # Of two copies of memorable prompts, one would give the other away.
    copies = transfer_matrix({"one": memorable(60, 0), "copy": memorable(60, 0)}, fit)
    values = copies["auc"].to_numpy()
    assert np.ptp(values) == 0
    assert 0.25 < values[0] < 0.75


def test_the_planted_layer_is_chosen() -> None:
    """Breaks if the separation of fitted pairs decides, or a layer of AUC 1 is not told from a better one."""
    shifts = {"blocks.0": 0.0, "blocks.1": 8.0, "blocks.2": 16.0, "blocks.3": 3.0}
    layers = {hook: apart(60, 30, shift, seed) for seed, (hook, shift) in enumerate(shifts.items())}
    sweep = sweep_layers(layers)
    assert sweep.best == "blocks.2"
    assert sweep.selection["blocks.1"].auc == sweep.selection["blocks.2"].auc == sweep.score.auc == 1
    assert list(sweep.selection) == list(shifts)
    assert (sweep.selection["blocks.2"].pairs, sweep.score.pairs) == (15, 15)
    np.testing.assert_array_equal(sweep.probe.weights[:3].round() != 0, [True, False, False])


def test_the_best_of_many_empty_layers_is_reported_without_its_luck() -> None:
    """Breaks if the score of the chosen layer comes from the pairs that it was chosen by."""
    chosen, reported = [], []
    for seed in range(15):
        sweep = sweep_layers({f"blocks.{i}": apart(80, 10, 0.0, seed=100 * seed + i) for i in range(20)}, seed=seed)
        chosen.append(sweep.selection[sweep.best].auc)
        reported.append(sweep.score.auc)
    assert np.mean(chosen) > 0.6
    assert abs(np.mean(reported) - 0.5) < 4 * np.std(reported) / np.sqrt(15)


def test_bad_input() -> None:
    """Breaks if prompts that do not belong together give a number."""
    data, rows = apart(6, 3, 1.0, seed=0), np.ones((4, 3))
    labels, pair = np.array([True, False] * 2), np.array([0, 0, 1, 1])
    with pytest.raises(UserError, match="4 rows of activations, 4 labels and 2 pairs"):
        ProbeData(rows, labels, pair[:2])
    with pytest.raises(UserError, match="one kind only"):
        ProbeData(rows, labels | True, pair)
    with pytest.raises(UserError, match="not finite"):
        ProbeData(rows * np.inf, labels, pair)
    with pytest.raises(UserError, match="4 positive and 3 negative"):
        ProbeData.from_pairs(rows, rows[:3])
    with pytest.raises(UserError, match="one kind only"):
        ProbeData.from_pairs(rows, rows * np.nan)
    constant = ProbeData(rows, labels, pair)
    with pytest.raises(UserError, match="same mean activation"):
        difference_of_means(constant)
    with pytest.raises(UserError, match="same activations"):
        logistic(constant)
    with pytest.raises(UserError, match="above 0, not 0"):
        logistic(data, l2=0.0)
    with pytest.raises(UserError, match="probe of 2 values cannot read activations of 3"):
        score_probe(Probe(np.ones(2), 0.0), data)
    with pytest.raises(UserError, match="6 pairs are too few"):
        sweep_layers({"blocks.0": data})
    with pytest.raises(UserError, match="add up to 1"):
        split_pairs(pair, (0.5, 0.6))
    with pytest.raises(UserError, match="no condition"):
        transfer_matrix({})
    with pytest.raises(UserError, match="at least one hook and three shares"):
        sweep_layers({})
    with pytest.raises(UserError, match="different prompts"):
        sweep_layers({"blocks.0": data, "blocks.1": apart(7, 3, 1.0, seed=1)})
