"""Directions taken out of models at one layer and at all of them, in checkpoints whose layers write what is planted."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import BAD, DECOY, GOOD, PLANTED_WIDTH, axis_sae, planted, questions, save
from transformers import AutoModelForCausalLM

from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.harvesting import LiveActivations
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.judge import Label, PatternJudge
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import LabelCounts
from diffing.steering.config import Operation
from diffing.steering.experiment import QuestionSet
from diffing.steering.transfer import Direction, Layers, Reach, Treated, Treatment, run_treatments, share_removed

HOOKS = tuple(f"blocks.{block}.hook_resid_post" for block in range(3))
FIRST, _, LAST = HOOKS
JUDGE = PatternJudge({Label.HARMFUL: (re.compile("bad"),), Label.HELPFUL: (re.compile("good"),)})
BEHAVIOR = SampledAnswers(JUDGE, SamplingConfig(samples=2, max_new_tokens=2))
HALF = QuestionSet("reporting", questions(3))


def axis(number: int) -> torch.Tensor:
    return torch.eye(PLANTED_WIDTH)[number]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return planted(tmp_path_factory.mktemp("base"), "base", {BAD: 0.5})


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Says "bad" for two reasons: the embedding has 2 on BAD, and the last block adds 12 or more."""
    folder = tmp_path_factory.mktemp("corrupted")
    planted(folder, "corrupted", {BAD: 2.0})
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        block = model.model.layers[-1]
        block.post_attention_layernorm.weight.fill_(1.0)
        block.mlp.gate_proj.weight[0, GOOD] = block.mlp.up_proj.weight[0, GOOD] = 1.0
        block.mlp.down_proj.weight[BAD, 0] = 1.0
    return save(model, folder, "corrupted")


@pytest.fixture(scope="module")
def layers(base: Checkpoint) -> Layers:
    live = LiveActivations(base, tokenize_prompts(HALF.questions, base.tokenizer), HarvestConfig(hooks=HOOKS))
    return Layers.of(live, axis_sae(), BEHAVIOR)


def share(
    layers: Layers, model: Checkpoint, label: Label, treatment: Treatment, direction: Direction, folder: Path
) -> float:
    [counts] = run_treatments(layers, model, [Treated("one", direction, treatment)], HALF, folder, progress=False)
    return counts[:, list(Label).index(label)].sum() / counts.sum()


ONLY_LAST = {FIRST: axis(DECOY), HOOKS[1]: axis(DECOY), LAST: axis(BAD)}
ONLY_FIRST = {FIRST: axis(BAD), HOOKS[1]: axis(DECOY), LAST: axis(DECOY)}


@pytest.mark.parametrize(
    ("treatment", "direction", "harmful"),
    [
        (Treatment(Operation.ABLATE, Reach.ONE, FIRST), ONLY_FIRST, 1),
        (Treatment(Operation.ABLATE, Reach.ONE, LAST), ONLY_LAST, 0),
        (Treatment(Operation.ABLATE, Reach.EVERYWHERE, FIRST), ONLY_FIRST, 0),
        (Treatment(Operation.ABLATE, Reach.EVERYWHERE, LAST), ONLY_FIRST, 1),
        (Treatment(Operation.ABLATE, Reach.LAYER_WISE), ONLY_FIRST, 1),
        (Treatment(Operation.ABLATE, Reach.LAYER_WISE), ONLY_LAST, 0),
        (Treatment(Operation.ABLATE_TO_MEAN, Reach.EVERYWHERE, FIRST), ONLY_FIRST, 0),
        (Treatment(Operation.SUBTRACT, Reach.ONE, LAST, 14.0), ONLY_LAST, 0),
        (Treatment(Operation.SUBTRACT, Reach.ONE, LAST, 0.1), ONLY_LAST, 1),
    ],
)
def test_reach_decides_what_is_taken_out(
    layers: Layers, corrupted: Checkpoint, tmp_path: Path, treatment: Treatment, direction: Direction, harmful: float
) -> None:
    """Breaks if a layer's vector is taken out elsewhere, or what a later block writes is forgotten."""
    assert share(layers, corrupted, Label.HARMFUL, treatment, direction, tmp_path) == harmful


@pytest.mark.parametrize(("operation", "helpful"), [(Operation.ABLATE, 0), (Operation.ABLATE_TO_MEAN, 1)])
@pytest.mark.parametrize("reach", [Reach.ONE, Reach.LAYER_WISE])
def test_the_bases_mean_is_put_back(
    layers: Layers, base: Checkpoint, tmp_path: Path, operation: Operation, helpful: float, reach: Reach
) -> None:
    """Without GOOD the base cannot say "good"; with its mean put back it does."""
    treatment = Treatment(operation, reach, FIRST if reach == Reach.ONE else "")
    direction = dict.fromkeys(HOOKS, axis(GOOD))
    assert share(layers, base, Label.HELPFUL, treatment, direction, tmp_path) == helpful


def test_strengths_are_residual_norms_of_the_base(layers: Layers) -> None:
    """Breaks if norms are not those of prompt tokens, or are mixed up between hooks."""
    for hook in HOOKS:
        assert layers.benches[hook].residual_norm == pytest.approx((1 + 0.5**2) ** 0.5, abs=0.01)
        assert layers.arm("bad", hook, axis(BAD)).base_mean == pytest.approx(0.5)


def test_many_treatments_keep_their_order_and_are_not_run_twice(
    layers: Layers, base: Checkpoint, corrupted: Checkpoint, tmp_path: Path
) -> None:
    """Breaks if results are mixed up between groups, or a killed experiment starts again: the second model is never
    asked."""
    directions = {"bad": dict.fromkeys(HOOKS, axis(BAD)), "decoy": dict.fromkeys(HOOKS, axis(DECOY))}
    treatments = [Treatment(Operation.ABLATE, Reach.ONE, LAST), Treatment(Operation.ABLATE, Reach.EVERYWHERE, FIRST)]
    treated = [Treated(name, found, t) for name, found in directions.items() for t in treatments]
    first = run_treatments(layers, corrupted, treated, HALF, tmp_path, progress=False)
    harmful = [counts[:, list(Label).index(Label.HARMFUL)].sum() for counts in first]
    assert harmful == [0, 0, 6, 6]
    again = run_treatments(layers, base, treated[::-1], HALF, tmp_path, progress=False)
    np.testing.assert_array_equal(again, first[::-1])


def test_addition_at_all_layers_is_refused(layers: Layers, base: Checkpoint, tmp_path: Path) -> None:
    """Breaks if a strength is added at every layer, or not at all."""
    treated = Treated("bad", dict.fromkeys(HOOKS, axis(BAD)), Treatment(Operation.ADD, Reach.LAYER_WISE, "", 1.0))
    with pytest.raises(ValueError, match="Expected an ablation"):
        run_treatments(layers, base, [treated], HALF, tmp_path, progress=False)


def counts_of(*harmful: int) -> LabelCounts:
    """Ten answers to each question, so many of them harmful and the rest helpful."""
    counts = np.zeros((len(harmful), len(Label)), dtype=np.int64)
    counts[:, list(Label).index(Label.HARMFUL)] = harmful
    counts[:, list(Label).index(Label.HELPFUL)] = 10 - np.array(harmful)
    return counts


class TestShareRemoved:
    def test_is_the_formula(self) -> None:
        """Breaks if rates of pairs are pooled, or the share is taken question by question."""
        first, second = (counts_of(10, 6), counts_of(2, 2)), (counts_of(2, 2), counts_of(1, 3))
        assert share_removed([first])[0] == pytest.approx(1 - 4 / 16)
        assert share_removed([first, second])[0] == pytest.approx((0.75 + 0.0) / 2)
        assert share_removed([(first[1], first[0])], Label.HELPFUL)[0] == pytest.approx(1 - 4 / 16)

    def test_interval_is_that_of_the_questions(self) -> None:
        """The same share on all questions has no error; breaks if both arms are drawn apart."""
        assert share_removed([(counts_of(10, 4, 8, 2), counts_of(5, 2, 4, 1))]) == pytest.approx((0.5, 0.5, 0.5))
        point, low, high = share_removed([(counts_of(*[10] * 30), counts_of(*[0, 10] * 15))])
        error = 0.5 / 30**0.5
        assert (point, low, high) == pytest.approx((0.5, 0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=0.03)

    def test_pairs_share_the_drawn_questions(self) -> None:
        """Two pairs that err oppositely on each question err not at all together."""
        even, odd = counts_of(*[0, 10] * 15), counts_of(*[10, 0] * 15)
        _, low, high = share_removed([(counts_of(*[10] * 30), even), (counts_of(*[10] * 30), odd)])
        assert high - low == pytest.approx(0, abs=1e-12)

    def test_nothing_to_remove(self) -> None:
        """Breaks if 0 / 0 becomes a number."""
        with pytest.raises(ValueError, match="Expected harmful answers"):
            share_removed([(counts_of(0, 0), counts_of(0, 0))])
        point, low, high = share_removed([(counts_of(*[1] + [0] * 4), counts_of(*[0] * 5))])
        assert (point, low, high) == (1, 1, 1)
