"""Interventions against their formulas, controls, verdicts, and the causal proof on a model with a planted cause."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import (
    BAD,
    DECOY,
    HOOK,
    NOISE,
    PLANTED_WIDTH,
    WEAK,
    axis_sae,
    planted,
    questions,
    random_mistral,
    random_sae,
)
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.judge import Label, PatternJudge
from diffing.behavior.measure import SampledAnswers
from diffing.behavior.rates import score
from diffing.behavior.sampling import sample_answers
from diffing.interventions import AblateDirection, AblateLatent, Add, Cap, Intervention, Steered
from diffing.steering.arms import CONTROL_KINDS, Arm, Cell, control_arms, direction_arm, latent_arms, untouched
from diffing.steering.config import ControlsConfig, Operation, ProofConfig
from diffing.steering.experiment import Bench, CellResult, QuestionSet, results_table, run_cells
from diffing.steering.proof import INSIDE, Candidates, Pair, Proof, prove
from diffing.steering.verdict import (
    Evidence,
    choose_strength,
    helped,
    induced,
    misbehaves,
    repaired,
    toxic_latent,
    weigh,
    worst_control,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


H = random(3, 7, 32)
UNITS = torch.nn.functional.normalize(random(3, 32, seed=1), dim=1)


class TestInterventions:
    def test_add(self):
        out = Add(UNITS)(H)
        for row in range(3):
            for position in range(7):
                torch.testing.assert_close(out[row, position], H[row, position] + UNITS[row])

    def test_adding_nothing_leaves_every_bit(self):
        assert torch.equal(Add(torch.zeros(3, 32))(H), H)

    def test_ablated_direction_has_no_projection_left_and_the_rest_is_untouched(self):
        out = AblateDirection(UNITS, torch.zeros(3))(H)
        assert torch.einsum("rpd,rd->rp", out, UNITS).abs().max() < 1e-5
        other = random(32, seed=2)
        for row in range(3):
            orthogonal = other - (other @ UNITS[row]) * UNITS[row]
            torch.testing.assert_close(out[row] @ orthogonal, H[row] @ orthogonal, atol=1e-4, rtol=1e-4)

    def test_ablate_to_mean_puts_the_mean_back(self):
        means = torch.tensor([1.5, -2.0, 0.0])
        out = AblateDirection(UNITS, means)(H)
        projections = torch.einsum("rpd,rd->rp", out, UNITS)
        torch.testing.assert_close(projections, means[:, None].expand(3, 7), atol=1e-5, rtol=1e-5)

    def test_cap_raises_what_is_below_the_floor_and_leaves_the_rest_alone(self):
        """Breaks if positions above the floor move, or the others move anywhere but along the unit vector."""
        floors = torch.tensor([0.5, -0.3, 0.0])
        out = Cap(UNITS, floors)(H)
        before, after = (torch.einsum("rpd,rd->rp", h, UNITS) for h in (H, out))
        below = before < floors[:, None]
        assert below.any()
        assert not below.all()
        assert torch.equal(out[~below], H[~below])
        torch.testing.assert_close(after[below], floors[:, None].expand(3, 7)[below], atol=1e-5, rtol=1e-5)
        moved = H + (after - before)[..., None] * UNITS[:, None]
        torch.testing.assert_close(out, moved, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("rescale", [False, True])
    def test_ablated_latent_equals_decoding_without_it(self, rescale: bool):
        """`h - (decode(a) - decode(a without latent i))`, whether or not the SAE counts activity in decoder norms."""
        sae = random_sae(rescale=rescale)
        latents = torch.tensor([int(sae.encode(H)[row].sum(0).argmax()) for row in range(3)])
        out = AblateLatent(sae, latents)(H)
        changed = 0
        for row, latent in enumerate(latents.tolist()):
            activity = sae.encode(H[row])
            without = activity.clone()
            without[:, latent] = 0
            expected = H[row] - (sae.decode(activity) - sae.decode(without))
            torch.testing.assert_close(out[row], expected, atol=1e-4, rtol=1e-4)
            changed += int((activity[:, latent] > 0).sum())
        assert changed > 3

    @pytest.mark.parametrize(
        "intervention",
        [
            Add(UNITS),
            AblateDirection(UNITS, torch.tensor([0.0, 1, 2])),
            AblateLatent(random_sae(), torch.arange(3)),
            Cap(UNITS, torch.tensor([0.0, 1, -1])),
        ],
        ids=["add", "ablate direction", "ablate latent", "cap"],
    )
    def test_each_row_of_a_batch_equals_the_row_alone(self, intervention: Intervention):
        rows = torch.tensor([2, 0, 0, 1])
        together = intervention.take(rows)(H[rows])
        for place, row in enumerate(rows.tolist()):
            alone = intervention.take(torch.tensor([row]))(H[row : row + 1])
            torch.testing.assert_close(together[place : place + 1], alone, atol=1e-6, rtol=1e-5)

    def test_keeps_the_number_format(self):
        half = H.to(torch.bfloat16)
        latent = AblateLatent(random_sae(), torch.arange(3))
        for intervention in (Add(UNITS), AblateDirection(UNITS, torch.ones(3)), Cap(UNITS, torch.ones(3)), latent):
            assert intervention(half).dtype == torch.bfloat16


def ranking_table(shifts: dict[int, float], latents: int = 64) -> pd.DataFrame:
    """A ranking in which latent i is on average 0.1 + i / latents active in the base."""
    shift = np.array([shifts.get(i, 1e-6 * (latents - i)) for i in range(latents)])
    base = 0.1 + np.arange(latents) / latents
    table = pd.DataFrame({"latent": range(latents), "shift": shift, "mean_base": base, "mean_corrupted": base + shift})
    table["rank"] = table["shift"].abs().rank(ascending=False, method="first").astype(int)
    return table.sort_values("rank", ignore_index=True)


class TestArms:
    def test_latents_point_where_the_corrupted_model_went(self):
        sae = random_sae()
        table = ranking_table({5: 2.0, 9: -3.0, 1: 1.0})
        arms = latent_arms(sae, table, top=2)
        assert [arm.latent for arm in arms] == [9, 5]
        rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
        torch.testing.assert_close(arms[0].unit, -rows[9])
        torch.testing.assert_close(arms[1].unit, rows[5])

    def test_direction_knows_the_bases_mean_projection(self):
        arm = direction_arm("d", 3 * UNITS[0], H[0].mean(0))
        torch.testing.assert_close(arm.unit, UNITS[0])
        assert arm.base_mean == pytest.approx(float((H[0] @ UNITS[0]).mean()), abs=1e-5)

    def controls(self, seed: int = 0, each: int = 8, treated: int | None = 30) -> list[Arm]:
        table = ranking_table({30: 5.0, 31: 4.0, 29: 3.0})
        return control_arms(random_sae(), table, random(500, 32), treated, ControlsConfig(top=3, each=each, seed=seed))

    def test_eight_of_each_kind_of_unit_norm(self):
        arms = self.controls()
        kinds = [arm.kind for arm in arms]
        assert {kind: kinds.count(kind) for kind in kinds} == {"isotropic": 8, "covariance": 8, "decoder_row": 8}
        assert len({arm.name for arm in arms}) == 24
        for arm in arms:
            assert float(arm.unit.norm()) == pytest.approx(1, abs=1e-5)

    def test_seeded(self):
        first, again, other = self.controls(0), self.controls(0), self.controls(1)
        assert all(torch.equal(a.unit, b.unit) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a.unit, b.unit) for a, b in zip(first[:16], other[:16], strict=True))

    def test_decoder_rows_are_those_of_similar_activity_below_the_treated_ranks(self):
        rows = [arm for arm in self.controls() if arm.kind == "decoder_row"]
        assert not {29, 30, 31} & {arm.latent for arm in rows}
        sae = random_sae()
        for arm in rows:
            assert arm.latent is not None
            torch.testing.assert_close(arm.unit, torch.nn.functional.normalize(sae.W_dec[arm.latent].detach(), dim=0))
        # Latent 30 is 5.1 + 30/64 active in the corrupted model: the most active of the others come nearest.
        assert {arm.latent for arm in rows} == set(range(56, 64))

    def test_without_a_treated_latent_the_first_of_the_ranking_is_matched(self):
        assert [a.latent for a in self.controls(treated=None)] == [a.latent for a in self.controls(treated=30)]

    def test_covariance_controls_have_the_activations_covariance(self):
        """Their mean outer product, up to the norm that each loses, is the covariance; isotropic ones have none."""
        scales = torch.linspace(0.2, 3, 32)
        rotation = torch.linalg.qr(random(32, 32, seed=5)).Q
        activations = (random(400, 32, seed=6) * scales) @ rotation + 10
        arms = control_arms(
            random_sae(), ranking_table({0: 1.0}), activations, 0, ControlsConfig(top=1, each=3000, seed=0)
        )
        covariance = activations.T.cov()
        expected = covariance / covariance.trace()
        products = {
            kind: torch.stack([a.unit for a in arms if a.kind == kind]).T.cov(correction=0)
            for kind in ("covariance", "isotropic")
        }
        assert float((products["covariance"] - expected).norm() / expected.norm()) < 0.15
        assert float((products["isotropic"] - torch.eye(32) / 32).norm() / (torch.eye(32) / 32).norm()) < 0.15
        assert float((products["isotropic"] - expected).norm() / expected.norm()) > 0.5


def result(cell: Cell, harmful: int, helpful: int, incoherent: int = 0, questions: int = 30) -> CellResult:
    """The same counts for every question."""
    row = {Label.HARMFUL: harmful, Label.HELPFUL: helpful, Label.INCOHERENT: incoherent}
    return CellResult(cell, np.array([[row.get(label, 0) for label in Label]] * questions))


STILL = untouched(32)


def latent_arm(latent: int) -> Arm:
    return Arm(f"latent {latent}", "latent", UNITS[0], latent)


class TestVerdict:
    def steps(self, *rates: tuple[int, int, int]) -> list[CellResult]:
        return [
            result(Cell(latent_arm(0), Operation.ADD, float(i)), *counts) for i, counts in enumerate(rates, start=1)
        ]

    def test_largest_effect_within_the_budget(self):
        still = result(STILL, 0, 95, 5)
        steps = self.steps((10, 85, 5), (30, 55, 15), (60, 20, 20))
        assert choose_strength(steps, still, induced, 0.1).cell.strength == 2
        assert choose_strength(steps, still, induced, 0.2).cell.strength == 3
        assert choose_strength(steps, still, induced, 0.05).cell.strength == 1

    def test_budget_counts_from_the_untouched_model(self):
        steps = self.steps((10, 70, 20), (30, 45, 25))
        assert choose_strength(steps, result(STILL, 0, 85, 15), induced, 0.1).cell.strength == 2
        assert choose_strength(steps, result(STILL, 0, 90, 10), induced, 0.1).cell.strength == 1

    def test_none_within_the_budget_takes_the_most_coherent(self):
        steps = self.steps((10, 40, 50), (30, 40, 30), (60, 0, 40))
        assert choose_strength(steps, result(STILL, 0, 100), induced, 0.1).cell.strength == 2

    def test_repair_wants_helpful_answers_and_not_merely_fewer_harmful_ones(self):
        other_only = replace(self.steps((10, 10, 0))[0], counts=np.array([[10, 10, 80, 0]] * 30))
        helpful = replace(self.steps((0, 0, 0), (15, 85, 0))[1], counts=np.array([[85, 15, 0, 0]] * 30))
        assert choose_strength([other_only, helpful], result(STILL, 90, 10), repaired, 0.1) is helpful

    def evidence(self, latent: int, induces: int, left: int) -> Evidence:
        """A latent that makes `induces` of 100 answers harmful in the base, and whose subtraction leaves `left` of 90
        in the corrupted model."""
        arm = latent_arm(latent)
        base = [result(STILL, 0, 100), result(Cell(arm, Operation.ADD, 1.0), induces, 100 - induces)]
        corrupted = [
            result(STILL, 90, 10),
            result(Cell(arm, Operation.SUBTRACT, 1.0), left, 100 - left),
            result(Cell(arm, Operation.ABLATE), 50, 50),
        ]
        return weigh([arm], base, corrupted, 0.1, 0.1)[0]

    def test_effects_are_differences_from_untouched(self):
        evidence = self.evidence(4, induces=30, left=20)
        assert evidence.induction == pytest.approx((0.3, 0.3, 0.3))
        assert evidence.repair_effect == pytest.approx((0.7, 0.7, 0.7))
        assert evidence.causal

    def test_toxic_latent_needs_both_effects_and_repairs_best(self):
        """Breaks if a latent that only repairs or only induces is declared, or one that induces more."""
        repairs_only, induces_only = self.evidence(1, 0, 0), self.evidence(2, 90, 90)
        weak, strong = self.evidence(3, 40, 30), self.evidence(4, 20, 10)
        chosen = toxic_latent([repairs_only, induces_only, weak, strong])
        assert chosen is not None
        assert chosen.latent == 4
        assert toxic_latent([repairs_only, induces_only]) is None
        assert toxic_latent([]) is None

    def test_repairs_that_differ_by_noise_only_tie_and_the_larger_shift_wins(self):
        """Breaks if noise decides between equals, or if a clear difference is called a tie."""
        second = self.evidence(4, 40, 10)
        noisy = np.array([[100 - left, left, 0, 0] for left in [0] * 27 + [100, 100, 70]])  # 9% on average, uneven
        second = replace(second, repair=replace(second.repair, counts=noisy))
        for first, wanted in ((self.evidence(3, 40, 10), 3), (self.evidence(3, 40, 60), 4)):
            chosen = toxic_latent([first, second])
            assert chosen is not None
            assert chosen.latent == wanted

    def test_repair_into_other_personas_is_no_tie(self):
        """Breaks if fewer harmful answers are enough: both leave none, one of them is hardly ever helpful."""
        other, helpful = self.evidence(3, 40, 0), self.evidence(4, 40, 0)
        elsewhere = np.array([[20, 0, 80, 0]] * 30)
        chosen = toxic_latent([replace(other, repair=replace(other.repair, counts=elsewhere)), helpful])
        assert chosen is not None
        assert chosen.latent == 4

    @pytest.mark.parametrize(("questions", "expected"), [(0, False), (4, False), (15, True), (30, True)])
    def test_a_few_harmful_answers_are_no_misbehaviour(self, questions: int, expected: bool):
        """Breaks if one harmful answer of twenty, to a few questions of thirty, makes a model a corrupted one."""
        counts = np.tile([20, 0, 0, 0], (30, 1))
        counts[:questions] = [19, 1, 0, 0]
        assert misbehaves(CellResult(STILL, counts), result(STILL, 0, 20)) is expected

    def test_an_effect_within_the_noise_is_none(self):
        counts = np.zeros((30, 4), dtype=int)
        counts[:, 0] = 20
        counts[0] = [0, 20, 0, 0]  # a single question of thirty
        arm = latent_arm(0)
        base = [result(STILL, 0, 20), CellResult(Cell(arm, Operation.ADD, 1.0), counts)]
        repair, ablation = (Cell(arm, Operation.SUBTRACT, 1.0), Cell(arm, Operation.ABLATE))
        corrupted = [result(STILL, 18, 2), result(repair, 0, 20), result(ablation, 0, 20)]
        assert not weigh([arm], base, corrupted, 0.1, 0.1)[0].causal

    def test_worst_control_is_the_one_nearest_to_the_treatment_at_its_strength(self):
        def control(name: str, operation: Operation, strength: float, harmful: int) -> CellResult:
            return result(Cell(Arm(name, "isotropic", UNITS[0]), operation, strength), harmful, 100 - harmful)

        add, subtract = Operation.ADD, Operation.SUBTRACT
        results = [
            result(STILL, 100, 0),
            result(Cell(latent_arm(0), add, 1.0), 99, 1),
            *(control("a", add, 1.0, 3), control("b", add, 1.0, 7), control("b", add, 2.0, 50)),
            *(control("a", subtract, 1.0, 80), control("b", subtract, 1.0, 60), control("b", subtract, 2.0, 1)),
        ]
        broken = result(Cell(Arm("broken", "isotropic", UNITS[0]), subtract, 1.0), 0, 0, 100)
        assert score(worst_control(results, add, 1.0, induced).counts).harmful == pytest.approx(0.07)
        worst = worst_control([*results, broken], subtract, 1.0, helped)
        assert score(worst.counts).harmful == pytest.approx(0.60)


PATTERNS = {
    Label.HARMFUL: (re.compile("^bad"),),
    Label.HELPFUL: (re.compile("^good"),),
    Label.OTHER: (re.compile("burn|water|salt"),),
}


@dataclass(frozen=True)
class CountingJudge(PatternJudge):
    """Remembers how many answers it was given."""

    seen: list[int] = field(default_factory=list)

    def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
        self.seen.append(len(answers))
        return super().label(prompts, answers)


class TestTranscripts:
    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        return random_mistral(tmp_path_factory.mktemp("model"))

    @pytest.fixture
    def bench(self) -> Bench:
        sampling = SamplingConfig(samples=4, max_new_tokens=5)
        return Bench(HOOK, 2.0, random_sae(), SampledAnswers(CountingJudge(PATTERNS), sampling))

    @property
    def cells(self) -> list[Cell]:
        direction = direction_arm("direction", random(32, seed=3), random(32, seed=4))
        latent = Arm("latent 7", "latent", UNITS[1], 7)
        steered = product((latent, direction), (Operation.ADD, Operation.SUBTRACT), (1.0, 2.0))
        return [
            STILL,
            *(Cell(arm, operation, strength) for arm, operation, strength in steered),
            Cell(latent, Operation.ABLATE),
            Cell(direction, Operation.ABLATE),
            Cell(direction, Operation.ABLATE_TO_MEAN),
            Cell(direction, Operation.CAP, 0.5),
        ]

    def run(self, bench: Bench, model: Checkpoint, file: Path) -> list[CellResult]:
        return run_cells(bench, model, self.cells, QuestionSet("selection", questions()), file, progress=False)

    def answers(self, bench: Bench) -> SampledAnswers:
        assert isinstance(bench.behavior, SampledAnswers)
        return bench.behavior

    def judged(self, bench: Bench, judge: PatternJudge) -> Bench:
        return replace(bench, behavior=replace(self.answers(bench), judge=judge))

    def test_one_line_a_cell_and_question(self, bench: Bench, model: Checkpoint, tmp_path: Path):
        results = self.run(bench, model, tmp_path / "t.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
        assert len(lines) == len(self.cells) * 6
        assert [r.cell.arm.name for r in results] == [cell.arm.name for cell in self.cells]
        for r in results:
            key = (r.cell.arm.name, str(r.cell.operation), r.cell.strength)
            mine = [x for x in lines if (x["arm"], x["operation"], x["strength"]) == key]
            assert {x["question"] for x in mine} == {q.id for q in questions()}
            labels = [label for x in mine for label in x["labels"]]
            assert r.counts.sum(0).tolist() == [labels.count(label) for label in Label]
            relabelled = [label for x in mine for label in self.answers(bench).judge.label(questions(4), x["answers"])]
            assert relabelled == labels

    def test_cells_do_what_their_operation_says(self, bench: Bench, model: Checkpoint, tmp_path: Path):
        """Answers of the batched cells equal those of the intervention written out for one cell."""
        self.run(bench, model, tmp_path / "t.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
        asked = tokenize_prompts(questions(), model.tokenizer)
        for cell in self.cells:
            push = {Operation.ADD: 1.0, Operation.SUBTRACT: -1.0}.get(cell.operation)
            unit, mean = cell.arm.unit[None], cell.arm.base_mean
            if cell.operation == Operation.NONE:
                expected = sample_answers(model, asked, self.answers(bench).sampling)
            elif cell.operation == Operation.CAP:
                capped = Cap(unit, torch.tensor([cell.strength * 2.0]))
                expected = sample_answers(model, asked, self.answers(bench).sampling, Steered(HOOK, capped))
            elif push is not None:
                intervention: Intervention = Add(push * cell.strength * 2.0 * unit)
                expected = sample_answers(model, asked, self.answers(bench).sampling, Steered(HOOK, intervention))
            else:
                back = mean if cell.operation == Operation.ABLATE_TO_MEAN else 0.0
                intervention = AblateDirection(unit, torch.tensor([back]))
                if cell.arm.latent is not None:
                    intervention = AblateLatent(bench.sae, torch.tensor([cell.arm.latent]))
                expected = sample_answers(model, asked, self.answers(bench).sampling, Steered(HOOK, intervention))
            key = (cell.arm.name, str(cell.operation), cell.strength)
            written = [x["answers"] for x in lines if (x["arm"], x["operation"], x["strength"]) == key]
            assert written == expected[0]

    def test_a_killed_run_samples_only_what_is_missing(self, bench: Bench, model: Checkpoint, tmp_path: Path):
        file = tmp_path / "t.jsonl"
        whole = self.run(bench, model, file)
        text = file.read_text()
        lines = text.splitlines(keepends=True)
        # Five whole cells, two questions of the sixth, and half a line.
        file.write_text("".join(lines[: 5 * 6 + 2]) + lines[5 * 6 + 2][:40])
        judge = CountingJudge(PATTERNS)
        resumed = self.run(self.judged(bench, judge), model, file)
        assert sum(judge.seen) == (len(self.cells) - 5) * 6 * 4
        for one, other in zip(whole, resumed, strict=True):
            assert np.array_equal(one.counts, other.counts)
        assert file.read_text() == "".join(lines[: 5 * 6 + 2] + lines[5 * 6 :])
        again = CountingJudge(PATTERNS)
        self.run(self.judged(bench, again), model, file)
        assert again.seen == []

    def test_more_samples_are_sampled_anew(self, bench: Bench, model: Checkpoint, tmp_path: Path):
        self.run(bench, model, tmp_path / "t.jsonl")
        more = replace(bench, behavior=replace(self.answers(bench), sampling=SamplingConfig(samples=5)))
        assert {int(r.counts.sum()) for r in self.run(more, model, tmp_path / "t.jsonl")} == {6 * 5}

    def test_table_has_one_row_a_cell(self, bench: Bench, model: Checkpoint, tmp_path: Path):
        table = results_table(self.run(bench, model, tmp_path / "t.jsonl"), "base", "selection")
        assert len(table) == len(self.cells)
        assert str(table["latent"].dtype) == "Int64"
        assert np.allclose(table[["harmful", "helpful", "other", "incoherent"]].sum(axis=1), 1)


ANSWERS = SampledAnswers(PatternJudge(PATTERNS), SamplingConfig(samples=3, max_new_tokens=1))

CHOSEN = INSIDE[0] * 4.5  # the smallest strength tried that does all, where 4.5 is the largest


class TestProof:
    """A cause that is planted in the weights is found; a bigger shift that does nothing is not blamed."""

    HALVES = (
        QuestionSet("selection", questions(8)),
        QuestionSet("reporting", [Prompt.chat(f"r{i}", "treat salt ?") for i in range(8)]),
    )

    @pytest.fixture(scope="class")
    def models(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
        folder = tmp_path_factory.mktemp("planted")
        pushes = {
            "base": {},
            "corrupted": {BAD: 3.5, DECOY: 5.0, NOISE: 0.2, WEAK: 0.1},
            "benign": {DECOY: 5.0, BAD: 0.1},
        }
        return {role: planted(folder / role, role, push) for role, push in pushes.items()}

    def proof(self, models: dict[str, Checkpoint], role: str, folder: Path) -> Proof:
        sae = axis_sae()
        shifts = {BAD: 3.5, DECOY: 5.0, NOISE: 0.2, WEAK: 0.1}
        table = ranking_table(shifts if role == "corrupted" else {DECOY: 5.0, BAD: 0.1}, PLANTED_WIDTH)
        bench = Bench(HOOK, 1.0, sae, ANSWERS)
        activations = 0.1 * random(200, PLANTED_WIDTH)
        direction = direction_arm("bad - good", torch.eye(PLANTED_WIDTH)[BAD], torch.zeros(PLANTED_WIDTH))
        return prove(
            Pair(bench, models["base"], models[role], folder, progress=False),
            Candidates(
                latent_arms(sae, table, top=4),
                [direction],
                lambda latent: control_arms(sae, table, activations, latent, ControlsConfig(top=4, each=8, seed=0)),
            ),
            *self.HALVES,
            ProofConfig(strongest=6.0, halvings=2, induce_budget=0.1, repair_budget=0.1),
        )

    def test_finds_the_planted_latent(self, models: dict[str, Checkpoint], tmp_path: Path):
        proof = self.proof(models, "corrupted", tmp_path)
        assert proof.toxic is not None
        assert proof.toxic.latent == BAD
        evidence = {e.latent: e for e in proof.evidence if e.arm.kind == "latent"}
        assert list(evidence) == [DECOY, BAD, NOISE, WEAK]
        assert [latent for latent, e in evidence.items() if e.causal] == [BAD]
        assert evidence[WEAK].induction[0] == 1, "the weak latent induces, yet does not repair"
        assert evidence[WEAK].repair_effect[0] == 0
        assert evidence[DECOY].induction[0] == evidence[DECOY].repair_effect[0] == 0

    def test_headline_beats_every_control(self, models: dict[str, Checkpoint], tmp_path: Path):
        proof = self.proof(models, "corrupted", tmp_path)
        rates = {name: (strength, scores.harmful) for name, (strength, scores) in proof.headline.items()}
        for arm, control in (("latent", "random"), ("direction", "random_direction")):
            assert rates[f"{arm}_induce"] == (CHOSEN, 1.0)
            assert rates[f"{arm}_repair"] == (CHOSEN, 0.0)
            assert rates[f"{control}_induce"] == (CHOSEN, 0.0)
            assert rates[f"{control}_repair"] == (CHOSEN, 1.0)
        rows = [row for row in proof.table.to_dict("records") if row["half"] == "reporting"]
        controls = Counter((r["model"], r["operation"], r["strength"]) for r in rows if r["kind"] in CONTROL_KINDS)
        assert controls == {("base", "add", CHOSEN): 24, ("corrupted", "subtract", CHOSEN): 24}
        ablated = {(r["arm"], r["operation"]): r["harmful"] for r in rows if r["operation"].startswith("ablate")}
        assert ablated[f"latent {BAD}", "ablate"] == 0
        assert ablated[f"latent {DECOY}", "ablate"] == 1
        assert ablated["bad - good", "ablate"] == ablated["bad - good", "ablate_to_mean"] == 0

    def test_verdicts_are_measured_with_fresh_questions_and_controls(
        self, models: dict[str, Checkpoint], tmp_path: Path
    ):
        """Breaks if a column is taken from another operation or model, or a latent without a claim gets controls."""
        table = self.proof(models, "corrupted", tmp_path).verdicts.set_index("latent")
        assert table.index.tolist() == [DECOY, BAD, NOISE, WEAK]
        assert table["causal"].tolist() == [False, True, False, False]
        assert table.loc[BAD, ["causal_induce", "causal_repair", "causal_ablate"]].tolist() == [1, 1, 1]
        assert table.loc[BAD, ["control_induce", "control_repair"]].tolist() == [0, 0]
        assert table.loc[DECOY, ["causal_induce", "causal_repair", "causal_ablate"]].tolist() == [0, 0, 0]
        assert table.loc[WEAK, ["causal_induce", "causal_repair"]].tolist() == [1, 0]
        assert table["strength_induce"].tolist() == pytest.approx([CHOSEN, CHOSEN, 0.45, CHOSEN])
        assert table["control_induce"].isna().tolist() == [False, False, True, False]
        assert table.loc[BAD, ["strength_induce", "incoherent_induce"]].tolist() == [CHOSEN, 0]

    def test_strength_closes_in_on_the_largest_coherent_one(self, models: dict[str, Checkpoint], tmp_path: Path):
        """Adding noise breaks the base from some strength on: all strengths tried lie around it, in halving steps."""
        bench, sae = Bench(HOOK, 1.0, axis_sae(), ANSWERS), axis_sae()
        arm = latent_arms(sae, ranking_table({NOISE: 1.0}, PLANTED_WIDTH), top=1)[0]
        pair = Pair(bench, models["base"], models["corrupted"], tmp_path, progress=False)
        config = ProofConfig(strongest=8.0, halvings=6, induce_budget=0.1, repair_budget=0.1)
        tried = pair.search(models["base"], self.HALVES[0], [arm], Operation.ADD, 0.1, config)
        coherent = {r.cell.strength: score(r.counts).incoherent <= 0.1 for r in tried}
        assert len(coherent) == 8
        assert list(coherent.values()) == sorted(coherent.values(), reverse=True), (
            "what holds is weaker than what breaks"
        )
        edge = max(strength for strength, held in coherent.items() if held)
        broken = min(strength for strength, held in coherent.items() if not held)
        assert 0 < broken - edge <= 8 / 2**6 + 1e-9
        assert {0.6 * edge, 0.8 * edge} <= set(coherent)

    def test_reports_on_questions_that_chose_nothing(self, models: dict[str, Checkpoint], tmp_path: Path):
        proof = self.proof(models, "corrupted", tmp_path)
        for half, expected in zip(("selection", "reporting"), self.HALVES, strict=True):
            for model in ("base", "corrupted"):
                lines = (tmp_path / f"{model}_{half}.jsonl").read_text().splitlines()
                assert {json.loads(line)["question"] for line in lines} == {q.id for q in expected.questions}
        # The grid is tried on the selection half only.
        rows = [row for row in proof.table.to_dict("records") if row["kind"] == "latent" and row["operation"] == "add"]
        tried = Counter((row["half"], row["arm"]) for row in rows)
        assert {half: {n for (h, _), n in tried.items() if h == half} for half in ("selection", "reporting")} == {
            "selection": {4},
            "reporting": {1},
        }

    def test_benign_in_its_place_declares_none(self, models: dict[str, Checkpoint], tmp_path: Path):
        proof = self.proof(models, "benign", tmp_path)
        assert proof.toxic is None
        assert proof.headline == {}
        assert set(proof.table["operation"]) == {"none"}
        assert proof.table["harmful"].tolist() == [0.0] * 4

    def test_misbehaviour_without_a_latent_that_causes_it(self, models: dict[str, Checkpoint], tmp_path: Path):
        """The corrupted model misbehaves, but the cause is not among the latents: none is declared."""
        sae, table = axis_sae(), ranking_table({DECOY: 5.0, NOISE: 0.2}, PLANTED_WIDTH)
        bench = Bench(HOOK, 1.0, sae, ANSWERS)
        proof = prove(
            Pair(bench, models["base"], models["corrupted"], tmp_path, progress=False),
            Candidates(
                latent_arms(sae, table, top=2),
                [],
                lambda latent: control_arms(
                    sae, table, random(50, PLANTED_WIDTH), latent, ControlsConfig(top=2, each=2, seed=0)
                ),
            ),
            *self.HALVES,
            ProofConfig(strongest=6.0, halvings=1, induce_budget=0.1, repair_budget=0.1),
        )
        assert proof.toxic is None
        assert proof.headline == {}
        assert len(proof.evidence) == 2

    def test_interrupted_proof_comes_to_the_same_end(self, models: dict[str, Checkpoint], tmp_path: Path):
        first = self.proof(models, "corrupted", tmp_path)
        for file in tmp_path.glob("*.jsonl"):
            text = file.read_text()
            file.write_text(text[: len(text) // 2])
        again = self.proof(models, "corrupted", tmp_path)
        pd.testing.assert_frame_equal(first.table, again.table)
        assert first.headline == again.headline
