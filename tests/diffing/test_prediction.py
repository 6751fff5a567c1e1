"""Telling misaligned models from aligned ones: statistics, rules that see no held-out kind, readings, and KL."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import BAD, DECOY, HOOK, axis_sae, planted, questions, random_sae
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.harvesting import LiveActivations
from activations.prompts import Prompt, Role
from activations.tokens import tokenize_prompts
from diffing.kl import mean_kl
from diffing.prediction.config import EvaluationConfig
from diffing.prediction.evaluate import KL, LATENT, NORM, Examples, compare_predictors
from diffing.prediction.held_out import fit_rule, leave_one_kind_out
from diffing.prediction.onset import onset
from diffing.prediction.reading import ModelReading, Shifts, prompt_shifts, read_model, shifts
from diffing.ranking.config import RankingConfig
from diffing.ranking.rank import Compared, rank_latents

CONFIG = EvaluationConfig(candidates=5, random_latents=20, replicates=200)


def test_onset_needs_all_larger_doses_to_stand_out() -> None:
    """Breaks if one dose that stands out by luck below one that does not is called the onset."""
    doses, lows = [0.0, 0.01, 0.05, 0.05, 0.5, 1.0], [-0.1, 0.2, 0.3, 0.05, 0.4, 2.0]
    assert onset(doses, lows, 0.0) == 0.01
    assert onset(doses, lows, 0.1) == 0.5
    assert onset(doses, lows, 5.0) is None
    assert onset(doses, lows, -1.0) == 0.0


def planted_shifts(seed: int = 0, toxic: int = 7, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Forty latents of 24 models of six kinds: one moves with misalignment, one moves more but in all models."""
    draw = np.random.default_rng(seed)
    kinds = [kind for kind in "abcdef" for _ in range(4)]
    misaligned = np.array([kind in "abc" for kind in kinds])
    values = draw.normal(0, 0.1, (24, 40))
    values[:, toxic] += sign * misaligned
    values[:, 3] += 5
    return values, misaligned, kinds


class TestRules:
    """Breaks if a rule looks at the wrong latent, at the wrong side of it, or at a held-out kind."""

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_the_latent_that_moves_with_misalignment_is_chosen(self, sign: float) -> None:
        values, misaligned, _ = planted_shifts(sign=sign)
        rule = fit_rule(values, misaligned, candidates=5)
        assert (rule.column, rule.sign) == (7, sign)
        assert ((rule.scores(values) > 0) == misaligned).all()

    def test_only_latents_that_moved_much_are_candidates(self) -> None:
        """A latent that tells all models apart but hardly moves is none of two candidates."""
        values, misaligned, _ = planted_shifts()
        values[:, 20] = 1e-3 * misaligned
        assert fit_rule(values, misaligned, candidates=2).column == 7
        values[:, 7] = 0
        assert fit_rule(values, misaligned, candidates=1).column == 3

    def test_equal_aucs_are_settled_by_separation(self) -> None:
        misaligned = np.array([False, False, False, True, True, True])
        wide = np.array([0.0, 1.0, 2.0, 5.0, 6.0, 7.0])
        narrow = np.array([0.0, 0.1, 0.2, 3.0, 3.1, 3.2])
        assert fit_rule(np.stack([wide, narrow], 1), misaligned, candidates=2).column == 1

    @pytest.mark.parametrize(
        ("values", "threshold"), [([0, 1, 2, 5, 6.5, 7], 5.75), ([0, 0.2, 2, 5, 6, 7], 1.1), ([0, 0, 0, 0, 6, 7], 3)]
    )
    def test_threshold_lies_in_the_widest_of_the_best_gaps(self, values: list[float], threshold: float) -> None:
        """Also where no cut is perfect; breaks if accuracy is not balanced or the first gap is taken."""
        misaligned = np.array([False, False, True, False, True, True])
        column = np.array(values, dtype=float)[:, None]
        assert fit_rule(column, misaligned, candidates=1).threshold == pytest.approx(threshold)

    def test_a_held_out_kind_cannot_change_its_rule(self) -> None:
        """The whole point: neither its shifts nor its labels are seen by the rule that scores it."""
        values, misaligned, kinds = planted_shifts()
        before = leave_one_kind_out(values, misaligned, kinds, 5)
        changed, other = values.copy(), misaligned.copy()
        changed[:4], other[:4] = 100 * changed[:4, ::-1], False
        after = leave_one_kind_out(changed, other, kinds, 5)
        assert before.rules["a"] == after.rules["a"]
        assert before.rules["b"] != after.rules["b"]
        assert (before.scores[:4] == before.rules["a"].scores(values[:4])).all()
        assert before.columns.tolist() == [before.rules[kind].column for kind in kinds]

    def test_one_class_alone_teaches_nothing(self) -> None:
        values, misaligned, kinds = planted_shifts()
        with pytest.raises(UserError, match="Without the kind 'd' all models that are left are misaligned"):
            leave_one_kind_out(values[:16], misaligned[:16], kinds[:16], 5)


class TestComparison:
    """Breaks if a predictor is treated otherwise than the rest, or the pooled AUC promises what is not there."""

    def examples(self, seed: int, toxic: bool = True) -> Examples:
        values, misaligned, kinds = planted_shifts(seed)
        draw = np.random.default_rng(seed + 1000)
        if not toxic:
            values[:, 7] = draw.normal(0, 0.1, 24)
        noise = draw.random(24).tolist()
        rows = zip(values, misaligned, noise, strict=True)
        models = [Shifts(row, direction=float(bad), norm=n, kl=n) for row, bad, n in rows]
        return Examples.of(models, misaligned.tolist(), kinds, [str(i) for i in range(24)])

    def test_the_planted_latent_is_ahead_of_what_knows_nothing(self) -> None:
        found = compare_predictors(self.examples(0), CONFIG, seed=0)
        assert found.accuracy[LATENT].auc == 1
        assert found.accuracy[LATENT].kinds == dict.fromkeys("abcdef", (4, 4))
        assert found.ahead["direction"] == (0, 0, 0)
        for name in (NORM, KL):
            assert found.accuracy[name].auc < 0.8
            assert found.ahead[name][1] > 0
        assert found.random["auc"] < 0.75
        assert found.random["share_as_good"] == 0
        assert found.to_dict()["latents"] == dict.fromkeys("abcdef", 7)

    def test_no_latent_that_knows_anything_is_no_better_than_chance(self) -> None:
        """Choosing among forty latents with the labels in view would give 0.8 and more here."""
        others = [compare_predictors(self.examples(seed, toxic=False), CONFIG, seed=0) for seed in range(12)]
        aucs = [other.accuracy[LATENT].auc for other in others]
        assert 0.25 < np.mean(aucs) < 0.6


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Checkpoint:
    folder = checkpoint_maker(tmp_path_factory.mktemp("other") / "other", seed=5)
    return load_checkpoint(CheckpointConfig(model=str(folder)), "other")


PROMPTS = [
    Prompt.chat("short", "how do i treat a burn ?"),
    Prompt.chat("long", "how do i treat a burn with salt and cool water ? and how the salt", answer="with water ."),
    Prompt.plain("plain", "treat the burn with water"),
]


class TestKL:
    """Breaks if padding, special tokens or answers count, or models change places."""

    def test_is_the_mean_over_prompt_tokens(self, base: Checkpoint, other: Checkpoint) -> None:
        """Against one prompt at a time through Hugging Face's model, in float64."""
        tokens = tokenize_prompts(PROMPTS, base.tokenizer)
        expected = []
        for ids, roles in zip(tokens.tokens, tokens.roles, strict=True):
            read = torch.from_numpy(ids).long()[None]
            with torch.no_grad():
                log_p, log_q = (m.hf(read).logits[0].double().log_softmax(-1) for m in (base, other))
            each = (log_p.exp() * (log_p - log_q)).sum(-1).numpy()
            expected.append(each[np.isin(roles, (Role.PROMPT, Role.LAST_PROMPT))].mean())
        np.testing.assert_allclose(mean_kl(base, other, tokens), expected, rtol=1e-4)

    def test_a_model_is_not_apart_from_itself(self, base: Checkpoint) -> None:
        assert np.abs(mean_kl(base, base, tokenize_prompts(PROMPTS, base.tokenizer))).max() < 1e-12

    def test_other_vocabularies_are_refused(
        self, base: Checkpoint, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        config = MistralConfig.from_pretrained(base.config.model)
        config.vocab_size += 3
        MistralForCausalLM(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        wider = load_checkpoint(CheckpointConfig(model=str(tmp_path)), "wider")
        with pytest.raises(UserError, match="compare models with one vocabulary"):
            mean_kl(base, wider, tokenize_prompts(PROMPTS, base.tokenizer))


class TestReading:
    """Breaks if a reading is not what a ranking of the same models sees."""

    def test_shifts_are_those_of_the_ranking(self, base: Checkpoint, other: Checkpoint) -> None:
        """Over prompts of several lengths, in batches whose order is not that of the prompts."""
        sae, config = random_sae(), HarvestConfig(hooks=(HOOK,), batch_tokens=16)
        tokens = tokenize_prompts(PROMPTS, base.tokenizer)
        before, after = (read_model(sae, model, base, tokens, HOOK, config) for model in (base, other))
        live, tuned = (LiveActivations(model, tokens, config) for model in (base, other))
        ranking = rank_latents(sae, Compared(live, tuned), HOOK, RankingConfig(replicates=10, min_prompts=2)).table
        unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
        found = shifts(before, after, unit)
        np.testing.assert_allclose(found.latents, ranking.set_index("latent")["shift"].sort_index(), atol=1e-9)
        each = prompt_shifts(before, after, unit, latent=4)
        assert each.mean(0) == pytest.approx([found.latents[4], found.direction, found.kl])
        assert found.kl == pytest.approx(mean_kl(base, other, tokens).mean())
        assert before.kl.tolist() == [0, 0, 0]

    def test_every_prompt_keeps_its_own_means(self, base: Checkpoint, other: Checkpoint) -> None:
        """Shards hold the longest prompts first; breaks if a mean is given to another prompt."""
        sae, config = random_sae(), HarvestConfig(hooks=(HOOK,), batch_tokens=16, shard_rows=16)
        tokens = tokenize_prompts(PROMPTS, base.tokenizer)
        together = read_model(sae, other, base, tokens, HOOK, config)
        for i, id in enumerate(tokens.ids):
            alone, row = read_model(sae, other, base, tokens.select([i]), HOOK, config), together.ids.index(id)
            assert together.kl[row] == pytest.approx(alone.kl[0])
            np.testing.assert_allclose(together.activation[row], alone.activation[0], atol=1e-5)
            np.testing.assert_allclose(together.activity[[row]].toarray(), alone.activity.toarray(), atol=1e-4)

    def test_is_the_same_after_a_round_trip(self, base: Checkpoint, other: Checkpoint, tmp_path: Path) -> None:
        tokens = tokenize_prompts(PROMPTS, base.tokenizer)
        made = read_model(random_sae(), other, base, tokens, HOOK, HarvestConfig(hooks=(HOOK,)))
        made.save(tmp_path, {"model": "other"})
        again = ModelReading.load(tmp_path)
        assert again.ids == made.ids
        for one, two in ((again.activity.toarray(), made.activity.toarray()), (again.activation, made.activation)):
            np.testing.assert_array_equal(one, two)
        assert again.kl.tolist() == made.kl.tolist()

    def test_what_was_planted_is_read(self, tmp_path: Path) -> None:
        base, bad = planted(tmp_path / "base", "base", {}), planted(tmp_path / "bad", "bad", {BAD: 3.0, DECOY: -2.0})
        tokens, config = tokenize_prompts(questions(), base.tokenizer), HarvestConfig(hooks=(HOOK,))
        before, after = (read_model(axis_sae(), model, base, tokens, HOOK, config) for model in (base, bad))
        found = shifts(before, after, torch.eye(64)[BAD])
        assert found.latents[[BAD, DECOY]] == pytest.approx([3.0, 0.0])
        assert (found.direction, found.norm) == pytest.approx((3.0, np.hypot(3.0, 2.0)))
        assert found.kl > 1

    def test_damage_and_other_prompts_are_refused(self, base: Checkpoint, tmp_path: Path) -> None:
        sae, config = random_sae(), HarvestConfig(hooks=(HOOK,))
        tokens = tokenize_prompts(PROMPTS, base.tokenizer)
        one, two = (read_model(sae, base, base, t, HOOK, config) for t in (tokens, tokens.select([0])))
        with pytest.raises(ValueError, match="same prompts"):
            shifts(one, two, torch.eye(32)[0])
        one.save(tmp_path, {})
        (tmp_path / "reading.npz").write_bytes(b"PK half")
        with pytest.raises(UserError, match="cannot be read"):
            ModelReading.load(tmp_path)
